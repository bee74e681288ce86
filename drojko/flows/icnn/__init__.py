"""Proximal steps over gradients of input-convex networks."""
