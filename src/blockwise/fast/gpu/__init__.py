"""Speed on an NVIDIA GPU: CUDA graphs, and one pass over memory after each frozen convolution."""
