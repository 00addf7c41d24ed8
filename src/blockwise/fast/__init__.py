"""Optimizations that need less time and memory and do not change results beyond rounding."""
