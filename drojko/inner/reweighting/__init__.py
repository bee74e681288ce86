"""Worst cases that reweight the reference."""
