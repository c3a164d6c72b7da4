"""A catalog that changes while it is served."""
