"""``omnimri curate`` with a vision-language model, in its own process or behind a server, from files to Data Docs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.curation.corpus import Corpus
from components.curation.text.template import HierarchicalDescription
from components.curation.vlm.local_model import LocalModel
from components.curation.vlm.prompt import answer_schema
from components.settings import VisualSettings
from tests.doubles.openai_server import serving
from tests.doubles.tiny_qwen import tiny_qwen
from tests.helpers.datasets import write_cohort

PATIENTS, CHARACTERS = 4, 12
FREE = [f"{section}.{leaf}" for section, fields in answer_schema(CHARACTERS)["properties"].items() for leaf in fields["properties"]]


class Installation:
    """An ingested dataset of unlabelled brains, in a home of its own."""

    def __init__(self, root: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
        self.home = root / "home"
        self.environment = {**clean, "OMNIMRI_HOME": str(self.home), "OMNIMRI_DATA": str(root / "data")}
        source = write_cohort(root / "source", PATIENTS)
        debug = yaml.safe_load((Path(__file__).parents[2] / "profiles" / "debug.yaml").read_text())
        self.profile = root / "profile.yaml"
        debug["datasets"] = [{"card": "synthetic-brain-nifti", "path": str(source)}]
        self.profile.write_text(yaml.safe_dump(debug))
        self.omnimri("ingest", "synthetic-brain-nifti", str(source))

    def omnimri(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "flows.cli", *arguments, "--profile", str(self.profile), "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    def curate(self, visual: dict[str, Any], *more: str) -> Any:
        return self.omnimri("curate", "--set", f"curation.visual={json.dumps(visual)}", *more)


@pytest.fixture(params=["folder", "server"])
def visual(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings of a randomly initialized Qwen2.5-VL, in the process or behind an OpenAI-compatible server."""
    folder = tiny_qwen(tmp_path / "qwen")
    common = {"field_characters": CHARACTERS, "batch": 2}
    if request.param == "folder":
        yield {"folder": str(folder), **common}
        return
    with serving(LocalModel(VisualSettings(folder=folder, field_characters=CHARACTERS))) as served:
        yield {"server": served.address, "model": "tiny-qwen", **common}


@pytest.mark.slow
def test_every_volume_is_described_once_and_the_corpus_passes_validation(visual: dict[str, Any], tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    first = installation.curate(visual, "--preview", "2")
    assert (first["vlm_answered"], first["vlm_reused"]) == (PATIENTS, 0) and first["vlm_volumes_per_s"] > 0
    corpus = Corpus.open(installation.home / "curated")
    for described in corpus.descriptions.values():
        HierarchicalDescription.from_fields(described.fields)
        by_model = [name for name, source in described.provenance.items() if source == "vlm"]
        assert described.vlm and set(by_model) <= set(FREE) and all(described.fields[name] for name in by_model)
    assert any("vlm" in described.provenance.values() for described in corpus.descriptions.values())
    assert "vlm" in (installation.home / "curated" / "preview.html").read_text()
    (run,) = (installation.home / "curated" / "visual" / "runs.jsonl").read_text().splitlines()
    assert json.loads(run)["answered"] == PATIENTS
    again = installation.curate(visual, "--set", "curation.slices_per_volume=1")  # other instructions about the same images
    assert (again["vlm_answered"], again["vlm_reused"]) == (0, PATIENTS)
