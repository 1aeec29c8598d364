"""One script per claim, with its peers in the same run."""
