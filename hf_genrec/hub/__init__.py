"""One folder becomes one Hub repository."""
