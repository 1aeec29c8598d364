"""Settings of all tests: offline, without telemetry."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
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

gc.set_threshold(100_000)  # looking for cyclic garbage after every 700 new objects takes a tenth of the time of the tests

if "PYTEST_XDIST_WORKER" in os.environ:  # parallel processes, one core each
    torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported; only kernels.dispatch.interpreted() uses it


@pytest.fixture(scope="module", autouse=True)
def _forget_the_tracking_server() -> Iterator[None]:
    """Reset MLflow's tracking URI, which the whole process and its environment share, after each module of tests."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption(
        "--fast",
        action="store_true",
        help="without the tests that start servers, trainers, compilers or other programs (make test-fast)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis generate the same examples in every run, with ``--run-slow`` new ones; no test has a deadline.

    A property without a number of its own has 40 examples, or 200.
    """
    patient: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
    hypothesis.settings.register_profile("repeatable", derandomize=True, max_examples=40, **patient)
    hypothesis.settings.register_profile("searching", derandomize=False, max_examples=200, **patient)
    hypothesis.settings.load_profile("searching" if config.getoption("--run-slow") else "repeatable")


LONG = (
    "e2e/test_pipeline",
    "kernels/test_compile_check",
    "flows/server",
    "components/training/test_checkpoints",
    "components/training/test_trained_stage",
    "components/training/test_precision",
    "components/training/test_added_stage",
    "e2e",
    "flows/test_curate",
    "flows/test_plan_equals_run",
    "flows/cli/test_usage_errors",
    "flows/cli/test_imports",
    "flows/cli/test_pacs_commands",
    "components/pacs",
    "components/registry",
    "components/serving",
    "components/inference/test_overfit",
    "components/curation/vlm",
    "components/curation/test_curate_corpus",
    "components/validation",
    "components/evaluation/test_evaluate",
    "components/ingestion/test_cleaning",
    "components/test_provenance",
    "components/tracking",
    "components/inference/test_dicom_output",
    "components/versioning",
    "components/ingestion/test_volume_reader",
    "components/ingestion/annotations/test_rt_structures",
    "components/ingestion/formats/dicom/test_geometry",
    "components/ingestion/test_written_is_read",
    "components/ingestion/deidentification/test_deidentify",
    "components/samples/test_cohort",
    "components/tasks/test_added_task",
    "components/ingestion/test_ingest_dataset",
    "components/launching",
    "model_core/test_transformers_contract",
    "model_core/test_objectives",
    "model_core/test_accounting",
    "cluster",
    "kernels",
    "faults",
    "k8s",
)
"""Files and folders whose tests start servers, trainers, compilers or other programs, or repeat many times; the longest come first,
so that all processes end together."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name contents of files by their parameter: compressed ones carry the time, and each process collects for itself."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start long files first, so that no process is left with one at the end, and skip with a reason what cannot run here."""
    items.sort(key=lambda item: [not _is_in(item.path, name) for name in LONG])
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --run-slow"))
        if item.get_closest_marker("cluster") and not ("KUBECONFIG" in os.environ and "cluster" in config.getoption("-m")):
            item.add_marker(pytest.mark.skip(reason="needs a cluster of yours: `make cluster-test`"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here: run `make gpu-test` on a machine with one"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the long files for the fast tests: their libraries take seconds in each process."""
    return True if config.getoption("--fast") and any(_is_in(collection_path, name) for name in LONG) else None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what the fast tests leave out."""
    return (
        f"fast tests, without {len(LONG)} files and folders of tests/ (make test runs all)" if config.getoption("--fast") else None
    )


def _is_in(path: Path, name: str) -> bool:
    return f"/tests/{name}/" in f"{path.as_posix()}/" or path.as_posix().endswith(f"/tests/{name}.py")
