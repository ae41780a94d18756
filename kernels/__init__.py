"""Triton convolution kernels: torch and triton only. Nothing here yet."""
