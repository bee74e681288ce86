"""Audit any model: how bad is the worst shift of each size, and what does it look like."""
