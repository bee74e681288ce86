"""Training against order-1 Wasserstein sets."""
