"""Read an export again: predict, evaluate, explain."""
