"""Worst cases of order 1: little mass, moved far."""
