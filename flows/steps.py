"""What every step depends on, so that it can be said beforehand what a run would do, and why.

A step that has been done leaves a record: the digests of its inputs by name, and of the files that prove it
(``steps/<step>/<digest of the inputs>.json``). With the same inputs and the proofs in place there is nothing to do; else the names
whose digests differ from those of the last time say why. The steps themselves need no record: each finds by content what is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.catalog import load_card
from components.curation.corpus import SUMMARY, Corpus
from components.curation.inputs import card_digest, code_version
from components.errors import BadInput
from components.files import read_json, write_json
from components.home import Home
from components.ingestion.deidentification.pseudonyms import load_key
from components.ingestion.ingest_dataset import output_recipe
from components.ingestion.manifest import MANIFEST
from components.ingestion.withdrawal import withdrawn_patients
from components.locks import claim
from components.provenance import SHORT, code_digest, digest, file_md5
from components.settings import STAGES, DatasetSettings, EvaluationSettings, IngestionSettings, Settings, StageName
from components.training import stage_jobs
from components.training.stages import CODE as TRAINING_CODE
from components.training.stages import DONE
from components.versioning import DataRepository
from components.versioning.source_state import folder_state, source_folder

State = Literal["reused", "runs", "depends"]
Inputs = Mapping[str, str]
MEASURING_CODE = (
    "components/evaluation",
    "components/tasks",
    "components/curation",
    "components/training",
    "model_core",
    "kernels",
)
REGISTERED = "registered.json"


@dataclass(frozen=True)
class PlannedStep:
    """What a run would do with one step.

    Attributes:
        state: ``reused``: its result is there; ``runs``; ``depends``: it runs if a step before it leaves something else.
        why: the inputs that changed, or what it waits for.
    """

    step: str
    state: State
    why: str


def _folder(home: Home, step: str) -> Path:
    return home.root / "steps" / re.sub(r"[^\w.-]+", "-", step)


def remember(home: Home, step: str, inputs: Inputs, *proofs: Path) -> None:
    """Note that a step has been done with these inputs and left these files."""
    proven = {str(path): file_md5(path) for path in proofs}
    write_json(_folder(home, step) / f"{digest(dict(inputs))[:SHORT]}.json", {"inputs": dict(inputs), "proofs": proven})


def reasons(home: Home, step: str, inputs: Inputs) -> list[str]:
    """Why a step would have something to do; nothing where its result is there."""
    folder = _folder(home, step)
    record = folder / f"{digest(dict(inputs))[:SHORT]}.json"
    if record.exists():
        lost = [path for path, md5 in read_json(record)["proofs"].items() if not _is(Path(path), md5)]
        return [f"{Path(path).name} is not what it left" for path in lost]
    known = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not known:
        return ["never done here"]
    before = read_json(known[-1])["inputs"]
    return [name for name in sorted({*inputs, *before}) if inputs.get(name) != before.get(name)]


def _is(path: Path, md5: str) -> bool:
    return path.is_file() and file_md5(path) == md5


def read_inputs(dataset: DatasetSettings, ingestion: IngestionSettings, home: Home) -> Inputs:
    """Inputs of reading a dataset. A key that is yet to be made counts as none."""
    card = load_card(dataset.card)
    known = ingestion.public_demo_key or ingestion.key_file or (home.root / "pseudonym.key").exists()
    return {
        "source files": folder_state(source_folder(dataset, home)),
        "card, key and form": output_recipe(card, load_key(ingestion, home)) if known else "",
        "withdrawn patients": digest(sorted(withdrawn_patients(home.data, card.id))),
    }


def manifest(dataset: DatasetSettings, home: Home) -> Path:
    """What reading a dataset leaves last."""
    return home.data / dataset.card / MANIFEST


def curate_inputs(settings: Settings, home: Home) -> Inputs:
    """Inputs of the corpus."""
    read = {f"data of {one.card}": file_md5(path) for one in settings.datasets if (path := manifest(one, home)).exists()}
    cards = {one.card: card_digest(load_card(one.card)) for one in settings.datasets}
    shaping = settings.curation.model_dump(mode="json", exclude={"workers"})
    return {**read, "dataset cards": digest(cards), "settings: curation": digest(shaping), "code of curation": code_version()}


def validate_inputs(home: Home) -> Inputs:
    """Inputs of validation."""
    corpus = Corpus.open(home.curated).tables_digest if (home.curated / SUMMARY).exists() else ""
    return {"corpus": corpus, "code of validation": code_digest("components/validation", "components/curation", "components/tasks")}


def stage_inputs(stage: StageName, settings: Settings, corpus: str, parent: str) -> Inputs:
    """Inputs of a stage, by names; whether it is trained is told by its folder, which carries the digest of all of them."""
    training = settings.training
    engine = digest(training.zero_stage, training.precision, training.decoder_average)
    return {
        "corpus": corpus,
        "seed": str(settings.seed),
        "settings: model": settings.model.digest(),
        "settings: training": engine,
        f"settings: training.{stage}": training.stage(stage).digest(),
        "code of training": code_digest(*TRAINING_CODE),
        "the stage before": parent,
    }


def evaluate_inputs(stage: str, corpus: str, settings: EvaluationSettings, seed: int) -> Inputs:
    """Inputs of the evaluation of a model that the chain trained; ``stage``: folder name of its last stage."""
    return {
        "model": stage,
        "corpus": corpus,
        "seed": str(seed),
        "settings: evaluation": settings.digest(),
        "code of evaluation": code_digest(*MEASURING_CODE),
    }


def register_inputs(evaluated: Inputs, settings: Settings, data: str) -> Inputs:
    """Inputs of a registration; the rest of a model's lineage is in those of its evaluation."""
    return {"evaluation": digest(dict(evaluated)), "settings": settings.digest(), "data version": data}


def _preparation(settings: Settings, home: Home) -> list[PlannedStep]:
    """From source folders to a validated corpus."""
    steps: list[PlannedStep] = []
    for dataset in settings.datasets:
        why = reasons(home, f"read {dataset.card}", read_inputs(dataset, settings.ingestion, home))
        steps.append(PlannedStep(f"read {dataset.card}", "runs" if why else "reused", _changed(why)))
    before = [step.step for step in steps if step.state == "runs"]
    for name, inputs in (("curate", curate_inputs(settings, home)), ("validate", validate_inputs(home))):
        why = reasons(home, name, inputs)
        if why or not before:
            steps.append(PlannedStep(name, "runs" if why else "reused", _changed(why)))
        else:
            steps.append(PlannedStep(name, "depends", _after(before)))
        if steps[-1].state == "runs":
            before.append(name)
    return steps


def _changed(why: list[str]) -> str:
    return (
        "; ".join(one if " is " in one or one.startswith("never") else f"{one} changed" for one in why) or "its inputs are the same"
    )


def _after(steps: list[str]) -> str:
    shown = ", ".join(steps) if len(steps) <= 2 else f"{steps[0]} and {len(steps) - 1} more"
    return f"if {shown} leaves something else"


def plan(settings: Settings, home: Home) -> list[PlannedStep]:
    """What ``omnimri run`` would do now, step by step; nothing is written, and no service is asked."""
    steps = _preparation(settings, home)
    before = [step.step for step in steps if step.state != "reused"]
    if not (home.curated / SUMMARY).exists():
        later = (*STAGES, "evaluate", "register")
        return [*steps, *(PlannedStep(name, "runs", "no corpus yet") for name in later)]
    corpus = Corpus.open(home.curated).digest
    jobs = stage_jobs(corpus, settings, home, STAGES[-1])
    parent, running = "", list(before)
    for stage, job in zip(STAGES, jobs, strict=True):
        if (job.folder / DONE).exists():
            state: State = "depends" if before else "reused"
            why = _after(before) if before else "its inputs are the same"
        else:
            state, why = "runs", _changed(reasons(home, stage, stage_inputs(stage, settings, corpus, parent)))
            running.append(stage)
        steps.append(PlannedStep(stage, state, why))
        parent = job.folder.name
    evaluated = evaluate_inputs(parent, corpus, settings.evaluation, settings.seed)
    registered = register_inputs(evaluated, settings, pinned(home))
    for name, inputs in (("evaluate", evaluated), ("register", registered)):
        changed = reasons(home, name, inputs)
        state = "runs" if changed else "depends" if running else "reused"
        steps.append(PlannedStep(name, state, _after(running) if state == "depends" else _changed(changed)))
        if changed:
            running.append(name)
    return steps


def pinned(home: Home) -> str:
    """The pinned data version; empty where there is none."""
    try:
        return DataRepository(home.data.parent, home.data).digest()
    except BadInput:
        return ""


@contextmanager
def writing(home: Home, settings: Settings | None = None, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Be the one that may change ``data/`` and the corpus.

    Args:
        settings: of what will be prepared; where all of that is there already nothing is going to change, so that those who train
            on the corpus are not waited for.
        waiting: told whom it waits for.
    """
    with claim(home.locks / "writer", waiting=waiting):
        settled = settings is not None and all(step.state == "reused" for step in _preparation(settings, home))
        with claim(home.locks / "corpus", shared=settled, waiting=waiting):
            yield


@contextmanager
def preparing(
    home: Home, kept: ExitStack, settings: Settings | None = None, waiting: Callable[[str], object] | None = None
) -> Iterator[None]:
    """As :func:`writing`; then keep the corpus as it is until ``kept`` is closed, before another writer may begin."""
    with claim(home.locks / "writer", waiting=waiting):
        with writing(home, settings, waiting):
            yield
        kept.enter_context(reading(home))


@contextmanager
def reading(home: Home) -> Iterator[None]:
    """Keep the corpus as it is."""
    with claim(home.locks / "corpus", shared=True):
        yield
