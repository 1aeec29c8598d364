"""A randomly initialised Qwen-VL, in this process and behind a server, can answer in no other form than the template's."""

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
from components.curation.vlm import Answers, prune
from components.curation.vlm.local_model import LocalModel
from components.curation.vlm.openai_client import ServedModel
from components.curation.vlm.prompt import Ask, answer_schema, longest_answer, parse_answer, tiled
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
from components.curation.vlm import Answers
from components.settings import VisualSettings
root = Path(sys.argv[1])
volumes = {one["record"]["volume_id"]: CuratedVolume.model_validate(one) for one in json.loads((root / "volumes.json").read_text())}
answers = Answers(VolumeStore(root / "store"), root, VisualSettings.model_validate_json(sys.argv[2]))
answers.ask([one.record for one in volumes.values()], volumes.__getitem__)
"""


class Counting:
    """A model that counts the questions that reach it."""

    def __init__(self, model: Any) -> None:
        self.model, self.digest, self.asked = model, model.digest, 0

    def answer(self, asks: Sequence[Ask], schema: dict[str, Any]) -> list[str]:
        self.asked += len(asks)
        return self.model.answer(asks, schema)


def _images(count: int, seed: int = 0) -> list[Ask]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(28, 100, (count, 2))
    return [Ask(f"v{i}", f"{i}", "What is seen?", rng.integers(0, 255, size, dtype=np.uint8)) for i, size in enumerate(sizes)]


def _answers(root: Path) -> list[Path]:
    return sorted((root / "visual").glob("??/*.json"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_every_answer_of_a_random_model_is_of_the_schema(family: Literal["qwen2_5_vl", "qwen3_vl"], tmp_path: Path) -> None:
    for seed in range(2):
        model = LocalModel(VisualSettings(folder=tiny_qwen(tmp_path / str(seed), family, seed), field_characters=CHARACTERS))
        answers = model.answer(_images(6, seed), SCHEMA)
        assert len(answers) == 6
        for answer in answers:
            Draft202012Validator(SCHEMA).validate(json.loads(answer))
            HierarchicalDescription.model_validate(json.loads(answer))


def test_the_whole_path_fills_sections_2_and_3_and_says_so(curated: Curated, local: LocalModel) -> None:
    model = Counting(local)
    settings = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=4)
    done, report = curated.asked(settings, model)
    assert (report.answered, report.reused, model.asked) == (6, 0, 6) and report.rate > 0
    for before, after in zip(curated.volumes, done, strict=True):
        record = after.description
        filled = [name for name, source in record.provenance.items() if source == "vlm"]
        assert filled and all(name.startswith(("visible_", "tissue_")) and record.fields[name] for name in filled)
        assert record.vlm and record.vlm.startswith(local.digest)
        kept = [name for name, source in before.description.provenance.items() if source in ("header", "label", "report")]
        assert all(record.fields[name] == before.description.fields[name] for name in kept)
    again, report = curated.asked(settings, model)
    assert (report.answered, report.reused, model.asked) == (0, 6, 6) and again == done


class Sidecars(dict[str, Any]):
    """Sidecars that count how many are held at a time, and which were loaded at all."""

    def __init__(self, curated: Curated) -> None:
        super().__init__({one.record.volume_id: one for one in curated.volumes})
        self.loaded: list[str] = []
        self.alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.most = 0

    def __call__(self, volume_id: str) -> Any:
        one = self[volume_id].model_copy()
        self.loaded.append(volume_id)
        self.alive[len(self.loaded)] = one
        self.most = max(self.most, len(self.alive))
        return one


def test_sidecars_of_one_batch_are_in_memory_and_none_of_what_is_answered(curated: Curated, local: LocalModel) -> None:
    settings = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=2)
    answers, records = Answers(curated.store, curated.root, settings, local), [one.record for one in curated.volumes]
    sidecars = Sidecars(curated)
    answers.ask(records[:2], sidecars)
    answers.ask(records, sidecars)
    assert sidecars.loaded == [record.volume_id for record in records] and sidecars.most <= 2
    filling, alone = answers.filling(sidecars), Sidecars(curated)
    assert filling(records[0].volume_id).description.vlm
    answers.ask(records, alone)
    assert alone.loaded == []


def test_the_same_image_is_asked_about_once(curated: Curated, local: LocalModel) -> None:
    twin = curated.volumes[0].model_copy(
        update={"record": curated.volumes[0].record.model_copy(update={"volume_id": curated.volumes[1].record.volume_id})}
    )
    model = Counting(local)
    curated.asked(VisualSettings(folder="unused", field_characters=CHARACTERS), model, [curated.volumes[0], twin])
    assert model.asked == 1


def test_the_rate_of_every_run_is_kept_and_a_run_that_stopped_is_one(curated: Curated, local: LocalModel) -> None:
    class Tired(Counting):
        def answer(self, asks: Sequence[Ask], schema: dict[str, Any]) -> list[str]:
            if self.asked >= 4:
                raise JobFailed("no answer", where="a server", remedy="wait")
            return super().answer(asks, schema)

    settings = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=2)
    with pytest.raises(JobFailed):
        curated.asked(settings, Tired(local))
    curated.asked(settings, local)
    curated.asked(settings, local)
    runs = [json.loads(line) for line in (curated.root / "visual" / "runs.jsonl").read_text().splitlines()]
    assert [(run["answered"], run["reused"]) for run in runs] == [(4, 0), (2, 4)]
    assert all(run["volumes_per_s"] == run["answered"] / run["seconds"] > 0 and run["model"] == local.digest for run in runs)


def test_another_model_or_another_image_is_asked_anew(curated: Curated, local: LocalModel) -> None:
    settings = VisualSettings(folder="unused", field_characters=CHARACTERS)
    curated.asked(settings, local, curated.volumes[:2])
    other = Counting(local)
    other.digest = "another"
    assert curated.asked(settings, other, curated.volumes[:2])[1].answered == 2
    changed = curated.volumes[0].model_copy(
        update={"record": curated.volumes[0].record.model_copy(update={"content_md5": "0" * 32})}
    )
    assert curated.asked(settings, local, [changed, curated.volumes[1]])[1].answered == 1


def test_answers_about_withdrawn_volumes_are_removed(curated: Curated, local: LocalModel) -> None:
    curated.asked(VisualSettings(folder="unused", field_characters=CHARACTERS), local, curated.volumes[:3])
    stays = curated.volumes[1].record.content_md5
    prune(curated.root, {stays})
    assert [path.name.partition(".")[0] for path in _answers(curated.root)] == [stays]


def test_the_double_speaks_the_protocol_of_the_official_client(local: LocalModel) -> None:
    with serving(local) as served:
        client = openai.OpenAI(base_url=served.address, api_key="none")
        assert [model.id for model in client.models.list()] == ["tiny-qwen"]
        ours = ServedModel(VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS))
        ours.answer(_images(1), SCHEMA)
        made = client.chat.completions.create(**served.completions[0])
        assert parse_answer(made.choices[0].message.content or "", SCHEMA)


def test_a_server_gives_the_same_descriptions_as_the_checkpoint_in_this_process(curated: Curated, local: LocalModel) -> None:
    with serving(local) as served:
        settings = VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS, batch=2)
        done, report = curated.asked(settings, None, curated.volumes[:3], curated.root / "served")
    assert report.answered == 3
    one_by_one = VisualSettings(folder="unused", field_characters=CHARACTERS, batch=1)
    here, _ = curated.asked(one_by_one, local, curated.volumes[:3], curated.root / "here")
    assert [one.description.fields for one in done] == [one.description.fields for one in here]


def _killed_after(count: int, curated: Curated, settings: VisualSettings) -> int:
    """Start a run in a process of its own, kill it when so many answers are there; the number left behind."""
    volumes = [one.model_dump(mode="json") for one in curated.volumes]
    (curated.root / "volumes.json").write_text(json.dumps(volumes))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", RESUME, str(curated.root), settings.model_dump_json()], cwd=REPOSITORY, env=environment
    )
    deadline = time.monotonic() + 120
    while len(_answers(curated.root)) < count:
        assert child.poll() is None and time.monotonic() < deadline, "the run ended before it was killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return len(_answers(curated.root))


def test_a_killed_run_with_a_checkpoint_goes_on_where_it_stopped(curated: Curated, local: LocalModel, checkpoint: Path) -> None:
    settings = VisualSettings(folder=checkpoint, field_characters=CHARACTERS, batch=1)
    left = _killed_after(2, curated, settings)
    assert 2 <= left < 6
    model = Counting(local)
    done, report = curated.asked(settings, model)
    assert report.reused == left and model.asked == 6 - left and all(one.description.vlm for one in done)


def test_a_killed_run_with_a_server_goes_on_where_it_stopped(curated: Curated, local: LocalModel) -> None:
    with serving(local) as served:
        settings = VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS, batch=1)
        left = _killed_after(2, curated, settings)
        assert 2 <= left < 6
        before = len(served.completions)
        done, report = curated.asked(settings)
        assert (
            report.reused == left and len(served.completions) - before <= 6 - left + 1 and all(one.description.vlm for one in done)
        )


def test_faults_that_pass_are_waited_out_and_others_are_told(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_VLM_KEY", "secret-word")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")  # a proxy of the environment is not used
    with serving(local) as served:
        settings = VisualSettings(server=served.address, model="tiny-qwen", field_characters=CHARACTERS, retries=3)
        model = ServedModel(settings, first_wait_s=0.01)
        served.faults[:] = [(503, {}), (429, {"Retry-After": "0.05"}), (500, {})]
        assert parse_answer(model.answer(_images(1), SCHEMA)[0], SCHEMA)
        assert len(served.completions) == 4 and set(served.authorisations) == {"Bearer secret-word"}
        served.faults[:] = [(503, {})] * 4
        with pytest.raises(JobFailed, match="no answer after 4 attempts: status 503"):
            model.answer(_images(1), SCHEMA)
        served.faults[:] = [(307, {"Location": "http://192.0.2.1/v1/chat/completions"})]
        with pytest.raises(BadInput, match="status 307") as refused:
            model.answer(_images(1), SCHEMA)
        assert "secret-word" not in str(refused.value)
        with pytest.raises(BadInput, match="no model 'other'"):
            ServedModel(settings.model_copy(update={"model": "other"}))
    with pytest.raises(JobFailed, match=r"ConnectError.*what is answered is kept"):
        ServedModel(settings.model_copy(update={"retries": 1}), first_wait_s=0.01)


def test_an_address_outside_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(BadInput, match="images would leave it"):
        ServedModel(VisualSettings(server="https://vlm.example.org/v1", model="m"))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint"):
        LocalModel(VisualSettings(folder=tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"visible_anatomical_structures": {}}', "[1]"])
def test_an_answer_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not of the schema"):
        parse_answer(text, SCHEMA)


def test_a_name_that_a_model_read_in_an_image_goes_no_further() -> None:
    answer = {section: dict.fromkeys(fields["properties"], "") for section, fields in SCHEMA["properties"].items()}
    answer["tissue_signal_characteristics"] = {
        "normal_signal_appearance": "Mr Miller",
        "abnormal_signal_patterns": "1970-02-03",
        "symmetry_and_structural_integrity": "symmetric",
    }
    found = {name: text for name, text in parse_answer(json.dumps(answer), SCHEMA).items() if text}
    assert found == {"tissue_signal_characteristics.symmetry_and_structural_integrity": "symmetric"}


@given(st.data())
def test_no_answer_of_the_schema_is_longer_than_the_bound(data: st.DataObject) -> None:
    """Else an answer could be cut off, and be no JSON."""
    answer = {
        section: {leaf: data.draw(st.from_regex(one["pattern"], fullmatch=True)) for leaf, one in fields["properties"].items()}
        for section, fields in SCHEMA["properties"].items()
    }
    text = json.dumps(answer, separators=(",", ":"))
    assert len(text) <= longest_answer(CHARACTERS)
    assert set(parse_answer(text, SCHEMA)) == {f"{s}.{leaf}" for s, f in SCHEMA["properties"].items() for leaf in f["properties"]}


def test_slices_are_tiled_in_rows_of_two() -> None:
    slices = np.stack([np.full((4, 5), 0.3 * k, dtype=np.float32) for k in range(3)])
    assert tiled(slices).shape == (8, 10) and tiled(slices[:1]).shape == (4, 5) and tiled(slices)[0, 5] == int(0.3 / 1.2 * 255)
