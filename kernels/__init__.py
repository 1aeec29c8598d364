"""Custom operations: shifted window attention in 2-D and 3-D, and mixture-of-experts layers.

One folder per operation: ``reference`` is the specification in plain PyTorch, ``cpu`` a faster CPU implementation, ``triton_*``
the GPU kernels, ``autograd`` the registration with PyTorch.
"""
