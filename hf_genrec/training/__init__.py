"""Prepared data and semantic IDs become a trained run folder."""
