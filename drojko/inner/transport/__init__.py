"""Worst cases that move the reference: maps, exact where a formula is known."""
