"""Registered versions are found in the home's own store without MLflow, and exactly those that MLflow finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.home import Home
from components.tracking.local_versions import find_local_version
from tests.helpers.mlflow_store import create_store

TAG = "weights_digest"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose store has two versions of a model, the second one deleted, and one whose files are elsewhere."""
    root = tmp_path_factory.mktemp("a home")
    home = Home(root, root / "data")
    create_store(home.mlflow / "mlflow.db")
    client = MlflowClient(home.local_store)
    client.create_registered_model("omnimri")
    for number in ("1", "2", "3"):
        (root / number).mkdir()
        source = (root / number).as_uri() if number != "3" else "s3://bucket/model"
        client.create_model_version("omnimri", source, tags={TAG: f"digest {number}"})
        client.set_registered_model_alias("omnimri", f"alias-{number}", number)
    client.set_registered_model_alias("omnimri", "staging", "1")
    client.delete_model_version("omnimri", "2")
    return home


@pytest.mark.parametrize("uri", ["models:/omnimri/1", "models:/omnimri@staging", "models:/omnimri@alias-1"])
def test_a_version_is_found_by_number_and_alias(home: Home, uri: str) -> None:
    found = find_local_version(uri, TAG, home.local_store, home)
    assert found is not None
    assert (found.name, found.number, found.folder, found.tag) == ("omnimri", "1", home.root / "1", "digest 1")
    expected = MlflowClient(home.local_store).get_model_version_download_uri("omnimri", "1")
    assert found.folder.as_uri() == expected


@pytest.mark.parametrize(
    "uri",
    [
        "models:/omnimri/2",
        "models:/omnimri@alias-2",
        "models:/omnimri/3",
        "models:/omnimri/4",
        "models:/omnimri@nobody",
        "models:/another/1",
        "models:/omnimri/Production",
        "models:/omnimri/1/weights",
        "models:/m-1337f76192404bdcaf8f19f772fc35c4",
        "runs:/1/model",
    ],
)
def test_mlflow_is_asked_about_everything_else(home: Home, uri: str) -> None:
    assert find_local_version(uri, TAG, home.local_store, home) is None


def test_mlflow_is_asked_where_the_store_is_another_one_or_none(home: Home, tmp_path: Path) -> None:
    assert find_local_version("models:/omnimri/1", TAG, "http://127.0.0.1:5000", home) is None
    other = Home(tmp_path, tmp_path / "data")
    assert find_local_version("models:/omnimri/1", TAG, other.local_store, other) is None
    other.mlflow.mkdir()
    (other.mlflow / "mlflow.db").write_bytes(b"no database")
    assert find_local_version("models:/omnimri/1", TAG, other.local_store, other) is None
