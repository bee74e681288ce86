"""Training against transport sets of order 2."""
