"""Ambiguity sets: which distributions count as near the reference."""
