"""Studies: train the cells of a config or of Python objects. This file imports nothing, so tables need no torch."""
