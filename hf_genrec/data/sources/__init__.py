"""Public data sets: from their published files to a prepared data set."""
