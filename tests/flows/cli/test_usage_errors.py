"""Usage errors are reported before Prefect is imported and before any server starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.provenance import REPOSITORY

IMPORTS = """
import sys
from flows.cli import main
try:
    main.main()
finally:
    print("imported:", [name for name in ("prefect", "mlflow", "torch") if name in sys.modules], file=sys.stderr)
"""


def fail(tmp_path: Path, *words: str) -> str:
    """Run a command that must fail with status 2 without importing a large library; return its standard error."""
    ours = ("PREFECT_", "MLFLOW_", "OMNIMRI_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"OMNIMRI_HOME": str(tmp_path / "home"), "OMNIMRI_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-c", IMPORTS, *words]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout, done.stdout + done.stderr
    assert "imported: []" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list((tmp_path / "home").glob("prefect/*")), "a server has started"
    return done.stderr


def write_profile(tmp_path: Path, **changes: object) -> str:
    profile = yaml.safe_load((REPOSITORY / "profiles" / "debug.yaml").read_text()) | changes
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(profile))
    return str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--profile", "nowhere"], "no such profile"),
        (["run", "--set", "training.pace=1"], "training.pace"),
        (["run", "--launcher", "moon"], "launcher"),
        (["ingest", "no-such-card", "."], "no-such-card: no such dataset card"),
        (["ingest", "icbm152-2009", "nowhere"], "nowhere: no such folder"),
        (["curate", "--profile", "nowhere"], "no such profile"),
        (["validate"], "no curated corpus"),
        (["train", "--profile", "debug"], "no curated corpus"),
        (["train", "--stage", "5"], "no such stage"),
        (["predict", "nowhere.nii", "Segment the lesion."], "nowhere.nii: no such file or folder"),
        (["predict", ".", "Segment the lesion.", "--model", "nowhere"], "nowhere: no saved model"),
        (["models", "serve", "1", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach this address"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_usage_error_names_fault_and_remedy_at_once(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in fail(tmp_path, *words)


def test_every_dataset_of_a_profile_is_checked_first(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for dataset, message in (
        ({"card": "pi-cai"}, "no sample of this dataset"),
        ({"card": "icbm152-2009", "path": str(tmp_path / "none")}, "no such folder"),
        ({"card": "no-such-card"}, "no such dataset card"),
        ({"card": "pi-cai", "path": str(scans)}, "demo key"),
    ):
        assert message in fail(tmp_path, "run", "--profile", write_profile(tmp_path, datasets=[dataset]))


def test_a_faulty_card_is_named_with_field_and_remedy(tmp_path: Path) -> None:
    cards = tmp_path / "home" / "cards"
    cards.mkdir(parents=True)
    (cards / "mine.yaml").write_text("id: mine\nname: M\nrights: ours\nsynthetic: false\nformats: [NIfTI]\ndoi: none\n")
    profile = write_profile(tmp_path, datasets=[{"card": "mine", "path": str(tmp_path)}])
    with_profile = [[command, "--profile", profile] for command in ("run", "curate", "serve")]
    for words in (*with_profile, ["ingest", "mine", "."]):
        assert "mine.yaml: the card is invalid: doi" in fail(tmp_path, *words)


def test_the_key_file_is_checked_first(tmp_path: Path) -> None:
    ingestion = {"key_file": str(tmp_path / "key")}
    assert "key file" in fail(tmp_path, "run", "--profile", write_profile(tmp_path, ingestion=ingestion))
