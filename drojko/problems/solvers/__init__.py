"""Solvers of decision problems: level bundles, spectral gradients, programs."""
