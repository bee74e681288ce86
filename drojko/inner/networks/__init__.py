"""Proven upper bounds of the worst case of a perceptron, by linear and quadratic relaxations."""
