"""Training against Sinkhorn sets."""
