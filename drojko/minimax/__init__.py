"""Outer solvers: the minimum over parameters of the worst-case risk."""
