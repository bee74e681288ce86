"""Transport sets of order 2: training, and certificates of learned maps."""
