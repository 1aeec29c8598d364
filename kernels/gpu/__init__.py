"""Triton kernels of the operations, with their launchers. Imported when an operation first meets a GPU, not before."""
