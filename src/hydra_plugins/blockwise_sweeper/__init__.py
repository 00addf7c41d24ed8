"""Hydra finds its plugins below this package."""
