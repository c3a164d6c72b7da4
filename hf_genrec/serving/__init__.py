"""Item ids in, ranked item ids out."""
