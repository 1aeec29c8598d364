"""The SwiGLU experts of a mixture and the combination of their results."""
