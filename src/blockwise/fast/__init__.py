"""Exact but faster: the same results as without this folder, in less time and memory."""
