"""A log becomes a prepared data set."""
