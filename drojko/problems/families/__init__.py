"""Decisions by family of ambiguity sets: oracles and certificates."""
