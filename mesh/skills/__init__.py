"""Skills that every worker has."""
