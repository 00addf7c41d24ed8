"""Data sets, one class per file."""
