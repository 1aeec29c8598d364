"""Every test runs offline, without telemetry, in a home of its own."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    DO_NOT_TRACK="1",
    DVC_NO_ANALYTICS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    GX_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DS_ACCELERATOR="cpu",
)

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side, each on a core of its own
    torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported; only kernels.dispatch.interpreted() uses it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests that take minutes, too")


LONG = (
    "e2e/test_pipeline",
    "kernels/test_training",
    "kernels/test_compile_check",
    "components/training",
    "e2e",
    "flows",
    "components/registry",
)
"""Files, or folders of them, in the order of what they take."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that needs a GPU, or minutes, says so where it is left out. Long files come first, so that no process ends alone."""
    items.sort(key=lambda item: [f"tests/{name}" not in item.path.as_posix() for name in LONG])
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --run-slow"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU here: run `make gpu-test` on a machine with one"))
