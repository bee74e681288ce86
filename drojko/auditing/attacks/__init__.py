"""Searches for the worst shift, and what they are compared with."""
