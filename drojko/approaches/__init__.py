"""One approach for each family of sets: how to train, certify, sample; and their one registry."""
