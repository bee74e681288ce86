"""Flows towards a target known by samples: a map and a critic trained against each other."""
