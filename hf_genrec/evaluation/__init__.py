"""Ranked lists become numbers that can be trusted and compared."""
