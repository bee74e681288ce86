"""Training against transport sets whose categories are swapped."""
