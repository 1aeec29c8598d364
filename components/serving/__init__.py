"""Serving of a registered model over HTTP: MLflow's scoring protocol, and a page for the browser that uses the same limits."""
