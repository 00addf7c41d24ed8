"""One batch: every cell trains on it, or is evaluated on it, one after another or as CUDA graphs."""
