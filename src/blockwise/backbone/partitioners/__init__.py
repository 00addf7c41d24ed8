"""Partitioners: each groups the layers of a backbone into blocks."""
