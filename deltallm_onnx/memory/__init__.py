"""Peak memory of a model for a context length, from its graph alone."""
