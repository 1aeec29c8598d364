"""A randomly initialized Qwen-VL, in this process or behind a server, can answer only in the form of the template."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from components.curation.text.template import HierarchicalDescription
from components.curation.vlm import VlmAnnotator, remove_stale_answers
from components.curation.vlm.local_model import LocalModel
from components.curation.vlm.openai_client import OpenAIClient
from components.curation.vlm.prompt import VlmQuery, answer_schema, max_answer_length, parse_answer, tile_slices
from components.errors import BadInput, JobFailed
from components.settings import VisualSettings
from tests.components.curation.vlm.conftest import CHARACTERS, Curated
from tests.doubles.openai_server import serving
from tests.doubles.tiny_qwen import tiny_qwen

REPOSITORY = Path(__file__).parents[4]
SCHEMA = answer_schema(CHARACTERS)
RESUME = """
import json, sys
from pathlib import Path
from components.curation.curate_volume import CuratedVolume
from components.curation.store import VolumeStore
from components.curation.vlm import VlmAnnotator
from components.settings import VisualSettings
root = Path(sys.argv[1])
volumes = [CuratedVolume.model_validate(volume) for volume in json.loads((root / "volumes.json").read_text())]
by_id = {volume.record.volume_id: volume for volume in volumes}
annotator = VlmAnnotator(VolumeStore(root / "store"), root, VisualSettings.model_validate_json(sys.argv[2]))
annotator.annotate([volume.record for volume in volumes], by_id.__getitem__)
"""


class CountingModel:
    """A model that counts the queries that reach it."""

    def __init__(self, model: Any) -> None:
        self.model, self.digest, self.queries = model, model.digest, 0

    def answer(self, queries: Sequence[VlmQuery], schema: dict[str, Any]) -> list[str]:
        self.queries += len(queries)
        return self.model.answer(queries, schema)


def _queries(count: int, seed: int = 0) -> list[VlmQuery]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(28, 100, (count, 2))
    images = [rng.integers(0, 255, size, dtype=np.uint8) for size in sizes]
    return [VlmQuery(f"v{i}", f"{i}", "What is seen?", image) for i, image in enumerate(images)]


def _answer_files(root: Path) -> list[Path]:
    return sorted((root / "visual").glob("??/*.json"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_every_answer_of_a_random_model_conforms_to_the_schema(family: Literal["qwen2_5_vl", "qwen3_vl"], tmp_path: Path) -> None:
    for seed in range(2):
        model = LocalModel(VisualSettings(folder=tiny_qwen(tmp_path / str(seed), family, seed), field_characters=CHARACTERS))
        answers = model.answer(_queries(6, seed), SCHEMA)
        assert len(answers) == 6
        for answer in answers:
            Draft202012Validator(SCHEMA).validate(json.loads(answer))
            HierarchicalDescription.model_validate(json.loads(answer))


def test_annotation_fills_sections_2_and_3_and_records_its_source(curated: Curated, local: LocalModel) -> None:
    model = CountingModel(local)
    settings = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=4)
    annotated, report = curated.annotate(settings, model)
    assert (report.answered, report.reused, model.queries) == (6, 0, 6) and report.rate > 0
    for before, after in zip(curated.volumes, annotated, strict=True):
        record = after.description
        filled = [name for name, source in record.provenance.items() if source == "vlm"]
        assert filled and all(name.startswith(("visible_", "tissue_")) and record.fields[name] for name in filled)
        assert record.vlm and record.vlm.startswith(local.digest)
        unchanged = [name for name, source in before.description.provenance.items() if source in ("header", "label", "report")]
        assert all(record.fields[name] == before.description.fields[name] for name in unchanged)
    again, report = curated.annotate(settings, model)
    assert (report.answered, report.reused, model.queries) == (0, 6, 6) and again == annotated


class Sidecars(dict[str, Any]):
    """Sidecars that record which were loaded, and how many were in memory at a time."""

    def __init__(self, curated: Curated) -> None:
        super().__init__({volume.record.volume_id: volume for volume in curated.volumes})
        self.loaded: list[str] = []
        self.alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.peak = 0

    def __call__(self, volume_id: str) -> Any:
        sidecar = self[volume_id].model_copy()
        self.loaded.append(volume_id)
        self.alive[len(self.loaded)] = sidecar
        self.peak = max(self.peak, len(self.alive))
        return sidecar


def test_only_sidecars_of_the_current_batch_are_in_memory_and_none_of_answered_volumes(curated: Curated, local: LocalModel) -> None:
    settings = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=2)
    annotator = VlmAnnotator(curated.store, curated.root, settings, local)
    records = [volume.record for volume in curated.volumes]
    sidecars = Sidecars(curated)
    annotator.annotate(records[:2], sidecars)
    annotator.annotate(records, sidecars)
    assert sidecars.loaded == [record.volume_id for record in records] and sidecars.peak <= 2
    load, untouched = annotator.wrap_loader(sidecars), Sidecars(curated)
    assert load(records[0].volume_id).description.vlm
    annotator.annotate(records, untouched)
    assert untouched.loaded == []


def test_the_same_image_is_queried_once(curated: Curated, local: LocalModel) -> None:
    twin = curated.volumes[0].model_copy(
        update={"record": curated.volumes[0].record.model_copy(update={"volume_id": curated.volumes[1].record.volume_id})}
    )
    model = CountingModel(local)
    curated.annotate(VisualSettings(folder="unused", field_characters=CHARACTERS), model, [curated.volumes[0], twin])
    assert model.queries == 1


def test_the_rate_of_every_run_is_recorded_interrupted_runs_included(curated: Curated, local: LocalModel) -> None:
    class FailingModel(CountingModel):
        def answer(self, queries: Sequence[VlmQuery], schema: dict[str, Any]) -> list[str]:
            if self.queries >= 4:
                raise JobFailed("no answer", where="a server", remedy="wait")
            return super().answer(queries, schema)

    settings = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=2)
    with pytest.raises(JobFailed):
        curated.annotate(settings, FailingModel(local))
    curated.annotate(settings, local)
    curated.annotate(settings, local)
    runs = [json.loads(line) for line in (curated.root / "visual" / "runs.jsonl").read_text().splitlines()]
    assert [(run["answered"], run["reused"]) for run in runs] == [(4, 0), (2, 4)]
    assert all(run["volumes_per_s"] == run["answered"] / run["seconds"] > 0 and run["model"] == local.digest for run in runs)


def test_another_model_or_another_image_is_queried_again(curated: Curated, local: LocalModel) -> None:
    settings = VisualSettings(folder="unused", field_characters=CHARACTERS)
    curated.annotate(settings, local, curated.volumes[:2])
    other = CountingModel(local)
    other.digest = "another"
    assert curated.annotate(settings, other, curated.volumes[:2])[1].answered == 2
    changed = curated.volumes[0].model_copy(
        update={"record": curated.volumes[0].record.model_copy(update={"content_md5": "0" * 32})}
    )
    assert curated.annotate(settings, local, [changed, curated.volumes[1]])[1].answered == 1


def test_answers_about_withdrawn_volumes_are_removed(curated: Curated, local: LocalModel) -> None:
    curated.annotate(VisualSettings(folder="unused", field_characters=CHARACTERS), local, curated.volumes[:3])
    remaining = curated.volumes[1].record.content_md5
    remove_stale_answers(curated.root, {remaining})
    assert [path.name.partition(".")[0] for path in _answer_files(curated.root)] == [remaining]


def test_the_server_double_implements_the_protocol_of_the_official_client(local: LocalModel) -> None:
    with serving(local) as served:
        client = openai.OpenAI(base_url=served.address, api_key="none")
        assert [model.id for model in client.models.list()] == ["tiny-qwen"]
        own_client = OpenAIClient(VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS))
        own_client.answer(_queries(1), SCHEMA)
        completion = client.chat.completions.create(**served.completions[0])
        assert parse_answer(completion.choices[0].message.content or "", SCHEMA)


def test_a_server_gives_the_same_descriptions_as_the_checkpoint_in_this_process(curated: Curated, local: LocalModel) -> None:
    with serving(local) as served:
        settings = VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS, batch=2)
        annotated, report = curated.annotate(settings, None, curated.volumes[:3], curated.root / "served")
    assert report.answered == 3
    one_by_one = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=1)
    here, _ = curated.annotate(one_by_one, local, curated.volumes[:3], curated.root / "here")
    assert [volume.description.fields for volume in annotated] == [volume.description.fields for volume in here]


def _killed_after(count: int, curated: Curated, settings: VisualSettings) -> int:
    """Start a run in another process, kill it once ``count`` answers exist, and return the number of answers it wrote."""
    volumes = [volume.model_dump(mode="json") for volume in curated.volumes]
    (curated.root / "volumes.json").write_text(json.dumps(volumes))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", RESUME, str(curated.root), settings.model_dump_json()], cwd=REPOSITORY, env=environment
    )
    deadline = time.monotonic() + 1000
    while len(_answer_files(curated.root)) < count:
        assert child.poll() is None and time.monotonic() < deadline, "the run ended before it was killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return len(_answer_files(curated.root))


def test_a_killed_run_with_a_checkpoint_resumes_where_it_stopped(curated: Curated, local: LocalModel, checkpoint: Path) -> None:
    settings = VisualSettings(folder=checkpoint, field_characters=CHARACTERS, batch=1)
    written = _killed_after(2, curated, settings)
    assert 2 <= written < 6
    model = CountingModel(local)
    annotated, report = curated.annotate(settings, model)
    assert report.reused == written and model.queries == 6 - written and all(volume.description.vlm for volume in annotated)


def test_a_killed_run_with_a_server_resumes_where_it_stopped(curated: Curated, local: LocalModel) -> None:
    with serving(local) as served:
        settings = VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS, batch=1)
        written = _killed_after(2, curated, settings)
        assert 2 <= written < 6
        before = len(served.completions)
        annotated, report = curated.annotate(settings)
        assert (
            report.reused == written
            and len(served.completions) - before <= 6 - written + 1
            and all(volume.description.vlm for volume in annotated)
        )


def test_transient_faults_are_retried_and_others_are_reported(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_VLM_KEY", "secret-word")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")  # a proxy of the environment is not used
    with serving(local) as served:
        settings = VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS, retries=3)
        model = OpenAIClient(settings, first_wait_s=0.01)
        served.faults[:] = [(503, {}), (429, {"Retry-After": "0.05"}), (500, {})]
        assert parse_answer(model.answer(_queries(1), SCHEMA)[0], SCHEMA)
        assert len(served.completions) == 4 and set(served.authorizations) == {"Bearer secret-word"}
        served.faults[:] = [(503, {})] * 4
        with pytest.raises(JobFailed, match="no answer after 4 attempts: status 503"):
            model.answer(_queries(1), SCHEMA)
        served.faults[:] = [(307, {"Location": "http://192.0.2.1/v1/chat/completions"})]
        with pytest.raises(BadInput, match="status 307") as refused:
            model.answer(_queries(1), SCHEMA)
        assert "secret-word" not in str(refused.value)
        with pytest.raises(BadInput, match="no model 'other'"):
            OpenAIClient(settings.model_copy(update={"model": "other"}))
    with pytest.raises(JobFailed, match=r"ConnectError.*existing answers are kept"):
        OpenAIClient(settings.model_copy(update={"retries": 1}), first_wait_s=0.01)


def test_a_remote_address_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(BadInput, match="images would leave it"):
        OpenAIClient(VisualSettings(server="https://vlm.example.org/v1", model="m"))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint"):
        LocalModel(VisualSettings(folder=tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"visible_anatomical_structures": {}}', "[1]"])
def test_an_answer_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="does not conform to the schema"):
        parse_answer(text, SCHEMA)


def test_a_name_that_the_model_read_in_an_image_is_dropped() -> None:
    answer = {section: dict.fromkeys(fields["properties"], "") for section, fields in SCHEMA["properties"].items()}
    answer["tissue_signal_characteristics"] = {
        "normal_signal_appearance": "Mr Miller",
        "abnormal_signal_patterns": "1970-02-03",
        "symmetry_and_structural_integrity": "symmetric",
    }
    texts = {name: text for name, text in parse_answer(json.dumps(answer), SCHEMA).items() if text}
    assert texts == {"tissue_signal_characteristics.symmetry_and_structural_integrity": "symmetric"}


@given(st.data())
def test_no_answer_of_the_schema_is_longer_than_the_bound(data: st.DataObject) -> None:
    """A longer answer would be truncated, and invalid JSON."""
    answer = {
        section: {leaf: data.draw(st.from_regex(one["pattern"], fullmatch=True)) for leaf, one in fields["properties"].items()}
        for section, fields in SCHEMA["properties"].items()
    }
    text = json.dumps(answer, separators=(",", ":"))
    assert len(text) <= max_answer_length(CHARACTERS)
    assert set(parse_answer(text, SCHEMA)) == {f"{s}.{leaf}" for s, f in SCHEMA["properties"].items() for leaf in f["properties"]}


def test_slices_are_tiled_in_rows_of_two() -> None:
    slices = np.stack([np.full((4, 5), 0.3 * k, dtype=np.float32) for k in range(3)])
    assert (
        tile_slices(slices).shape == (8, 10)
        and tile_slices(slices[:1]).shape == (4, 5)
        and tile_slices(slices)[0, 5] == int(0.3 / 1.2 * 255)
    )
