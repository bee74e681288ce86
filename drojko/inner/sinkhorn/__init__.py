"""Worst cases of Sinkhorn sets: tilted clouds around every sample."""
