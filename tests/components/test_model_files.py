"""Addresses of registered versions that MLflow can load."""

from pathlib import Path

import pytest

from components.model_files import loadable_address
from components.tracking import local_versions
from components.tracking.local_versions import LocalVersion


@pytest.mark.parametrize("name", ["home", "a b?#ü", "b%41"])
def test_a_version_below_a_path_with_a_percent_sign_is_reached_through_a_link(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow would read ``%41`` as A; any other path needs no link."""
    folder = tmp_path / name / "m-1" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "MLmodel").touch()
    version = LocalVersion("omnimri", "1", folder, "")
    monkeypatch.setattr(local_versions, "find_local_version", lambda *_: version)
    with loadable_address("models:/omnimri/1", "sqlite://") as address:
        if "%" in name:
            assert "%" not in address and (Path(address) / "MLmodel").samefile(folder / "MLmodel")
        else:
            assert address == "models:/omnimri/1"
    assert "%" not in name or not Path(address).exists()
    assert (folder / "MLmodel").is_file()
