"""Triton kernels for CUDA: paged decode attention, and what lies between a layer's matrices."""
