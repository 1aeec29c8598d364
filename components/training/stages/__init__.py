"""One module for each training stage, registered in :data:`components.registries.STAGES`."""
