"""The ground cost of transport: columns, categories, norms."""
