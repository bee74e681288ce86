"""Many starts for the worst case of a network: drawn, screened, shared, polished."""
