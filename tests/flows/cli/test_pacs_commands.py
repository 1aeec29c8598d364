"""Commands about archives: a study is answered and its answer stored once; what the user did not name is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.errors import BadInput
from components.files import read_json
from flows.cli.main import app
from tests.helpers.corpora import tiny_corpus
from tests.helpers.orthanc import needs_orthanc, running_orthanc
from tests.helpers.studies import series_uid, study_uid, write_mr_series
from tests.helpers.trained import tiny_model

PROFILE = Path(__file__).resolve().parents[3] / "profiles" / "demo.yaml"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMNIMRI_DATA", str(tmp_path / "data"))
    return tmp_path / "home"


def profile(folder: Path, url: str) -> str:
    """Write the demo profile with a server named mri."""
    content = yaml.safe_load(PROFILE.read_text())
    (folder / "mine.yaml").write_text(yaml.safe_dump({**content, "pacs": {"servers": {"mri": {"url": url}}, "patience_s": 5}}))
    return str(folder / "mine.yaml")


@needs_orthanc
def test_a_study_on_a_server_is_answered_and_the_answer_stored_once(tmp_path: Path, home: Path) -> None:
    model = tiny_model(tmp_path / "model", tiny_corpus(tmp_path / "corpus"))
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        orthanc.add(*write_mr_series(tmp_path / "source", 1, "t1", slices=4, pixels=32))
        address = f"dicomweb://mri/studies/{study_uid(1)}/series/{series_uid(1, 't1')}"
        options = [
            "--profile",
            profile(tmp_path, orthanc.url),
            "--model",
            str(model),
            "-o",
            str(tmp_path / "out"),
            "--store",
            "--json",
        ]
        answers = [json.loads(run("predict", address, "Write a report for this brain MRI.", *options)) for _ in range(2)]
        found = orthanc.instances(StudyInstanceUID=study_uid(1), includefield="00100020")
    assert [answer["stored"] for answer in answers] == [{"sent": 1, "present": 0}, {"sent": 0, "present": 1}]
    assert len(found) == 5 and {item["00100020"]["Value"][0] for item in found} == {"MRN-00001"}
    assert read_json(tmp_path / "out" / "answer.json")["text"] == answers[0]["text"]
    assert [path.name for path in (home / "pacs").iterdir()] == ["ledger.sqlite"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["image.nii", "Report.", "--store"], "named server only"),
        (["image.nii", "Report.", "--store", "--to", "other"], "named server only"),
        (["image.nii", "Report.", "--to", "mri"], "without --store"),
        (["dicomweb://other/studies/1.2", "Report."], "no such server"),
        (["dicomweb://mri/studies/x", "Report."], "not the address of a study"),
        (["dicomweb://mri/studies/1.2", "image.nii", "Report."], "beside other images"),
    ],
)
def test_a_destination_that_the_user_did_not_name_is_refused(tmp_path: Path, arguments: list[str], fault: str) -> None:
    with pytest.raises(BadInput, match=fault):
        run("predict", *arguments, "--profile", profile(tmp_path, "http://127.0.0.1:9/dicom-web"))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["icbm152-2009"], "no source"),
        (["icbm152-2009", "https://pacs.example/dicom-web"], "outside of this machine"),
        (["icbm152-2009", ".", "--query", "Modality=MR"], "a query for a folder"),
        (["icbm152-2009", "mri", "--query", "Modalty=MR"], "use Modality"),
        (["icbm152-2009", "dicom://127.0.0.1"], "not an address"),
    ],
)
def test_a_faulty_source_is_refused_before_anything_is_contacted(tmp_path: Path, arguments: list[str], fault: str) -> None:
    with pytest.raises(BadInput, match=fault):
        run("ingest", *arguments, "--profile", profile(tmp_path, "http://127.0.0.1:9/dicom-web"))
