"""Sets that reweight: density ratios, and sets that know their points."""
