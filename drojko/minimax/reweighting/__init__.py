"""Training against sets that reweight the reference."""
