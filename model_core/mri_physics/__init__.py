"""Physics of the MRI measurement: Fourier transforms, sampling masks, coil sensitivities, and consistency with measured k-space."""
