"""Items become semantic IDs."""
