"""The operations that the project exists for: shifted windowed attention in 2-D and 3-D, and mixture-of-experts layers.

One public function per operation; the plain PyTorch form in the same file is its specification.
"""
