"""Image formats: one module or package for each, registered in :data:`components.registries.FORMATS`."""
