"""Start the HTTP server of a registered version."""

from __future__ import annotations

from pathlib import Path

from components.home import Home
from components.inference.untrusted_input import Limits
from components.model_files import loadable_address
from components.network import ANY, LOOPBACK


def serve(model_uri: str, model_dir: Path, title: str, home: Home, host: str, port: int, limits: Limits, token: str | None) -> None:
    """Load a version and serve it until the process is terminated.

    Args:
        model_dir: folder of its weights, verified.
        title: name and version, shown on the page.
        token: that requests must carry; None = none.
    """
    import mlflow
    import uvicorn

    from components.pacs.originals import originals_folder
    from components.serving.answers import ServedModel
    from components.serving.app import create_app

    mlflow.set_tracking_uri(home.tracking_uri)
    hosts = None if token is not None or host in ANY else (*LOOPBACK, host)
    with (
        loadable_address(model_uri, home.tracking_uri) as address,
        originals_folder(home) as folder,  # uploads may contain the names of patients
    ):
        model = mlflow.pyfunc.load_model(address, suppress_warnings=True)
        served = ServedModel.load(model.unwrap_python_model().predictor, title, model_dir)
        app = create_app(served, model.predict, folder, limits, token, hosts)
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=30, server_header=False)
