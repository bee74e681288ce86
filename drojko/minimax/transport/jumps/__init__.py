"""Training against transport sets whose rows jump (labels, categories) or are held by bounds."""
