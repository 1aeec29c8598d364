"""The plan of a run: the inputs of every step, and which steps a run would execute now.

The component that implements a step states its inputs (``curation_inputs``, ``stage_inputs``, ...); plan and execution both use it.
A finished step leaves a record of its inputs, by name, and of the files that prove its result
(``steps/<step>/<digest of the inputs>.json``). The records explain a plan: they name the inputs that changed since the last run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from components.catalog import DatasetCard, load_card
from components.curation import curation_inputs, is_current
from components.curation.corpus import SUMMARY, Corpus
from components.errors import BadInput
from components.evaluation.evaluate import evaluation_inputs
from components.files import folder_state, read_state, write_json
from components.home import Home
from components.ingestion.deidentification.pseudonyms import find_key
from components.ingestion.inputs import IngestionInputs, ingestion_inputs
from components.ingestion.manifest import MANIFEST
from components.locks import Waiting, claim, claim_data
from components.pacs.ledger import Ledger
from components.pacs.source import comes_from_server
from components.provenance import SHORT, digest, file_md5
from components.registry.inputs import RegistrationInputs
from components.samples import cohort_digest
from components.settings import DatasetSettings, IngestionSettings, Settings
from components.training import stage_inputs, stage_jobs
from components.training.trained_stage import is_trained
from components.validation import current_report, validation_inputs
from components.verified_files import is_sealed
from components.versioning import DataRepository
from components.versioning.source_state import source_folder

State = Literal["reused", "runs", "depends"]
Inputs = Mapping[str, str]


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        step: its name.
        state: ``reused``: the result exists; ``runs``; ``depends``: the step runs if an earlier one changes its inputs.
        why: the changed inputs, or the steps that it depends on.
    """

    step: str
    state: State
    why: str


def _record_folder(home: Home, step: str) -> Path:
    return home.root / "steps" / re.sub(r"[^\w.-]+", "-", step)


def record_step(home: Home, step: str, inputs: Inputs, *proofs: Path) -> None:
    """Record that a step has run with these inputs and left these files."""
    checksums = {_portable(path, home): file_md5(path) for path in proofs}
    record = _record_folder(home, step) / f"{digest(dict(inputs))[:SHORT]}.json"
    write_json(record, {"inputs": dict(inputs), "proofs": checksums})


def changes(home: Home, step: str, inputs: Inputs) -> list[str]:
    """Return what has changed since a step ran last; nothing if it has run with these inputs and its files are in place."""
    folder = _record_folder(home, step)
    record = folder / f"{digest(dict(inputs))[:SHORT]}.json"
    stored = read_state(record)
    if "proofs" in stored:
        proofs = stored["proofs"].items()
        return [f"{_here(path, home).name} has changed" for path, md5 in proofs if not _has_md5(_here(path, home), md5)]
    records = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not records:
        return ["never run here"]
    previous = read_state(records[-1]).get("inputs", {})
    names = [name for name in sorted({*inputs, *previous}) if inputs.get(name) != previous.get(name)]
    return [f"{name} changed" for name in names]


def _portable(path: Path, home: Home) -> str:
    """Return a path of the home or of ``data/`` in a form that survives a move of both."""
    for name, root in (("home:", home.root), ("data:", home.data)):
        if path.is_relative_to(root):
            return f"{name}{path.relative_to(root).as_posix()}"
    return str(path)


def _here(path: str, home: Home) -> Path:
    """Return the path that :func:`_portable` has written."""
    name, separator, rest = path.partition(":")
    roots = {"home": home.root, "data": home.data}
    return roots[name] / rest if separator and name in roots else Path(path)


def _has_md5(path: Path, md5: str) -> bool:
    return path.is_file() and file_md5(path) == md5


def manifest_path(dataset: DatasetSettings, home: Home) -> Path:
    """Return the path of the file that ingestion of a dataset writes last."""
    return home.data / dataset.card / MANIFEST


def dataset_inputs(dataset: DatasetSettings, ingestion: IngestionSettings, home: Home) -> IngestionInputs:
    """Return the inputs of the ingestion of a dataset of the settings; no key is created."""
    card = load_card(dataset.card)
    if comes_from_server(dataset, card):
        source, generated = Ledger(home).observed(card.id), ""
    else:
        source = folder_state(source_folder(dataset, home))
        generated = cohort_digest(card, dataset.patients) if dataset.path is None else ""
    return ingestion_inputs(card, source, home.data, find_key(ingestion, home), generated)


def cards_of(settings: Settings) -> list[DatasetCard]:
    """Read the cards of the settings' datasets."""
    return [load_card(dataset.card) for dataset in settings.datasets]


def is_validated(home: Home) -> bool:
    """Return whether the present corpus has passed validation."""
    report = current_report(home.curated, home.validation) if (home.curated / SUMMARY).exists() else None
    return report is not None and report.passed


def pinned_data(home: Home) -> str:
    """Return the pinned data version; "" where there is none."""
    try:
        return DataRepository(home.data.parent, home.data).digest()
    except BadInput:
        return ""


class _Planner:
    """Plans the steps of a run one after the other.

    Attributes:
        steps: the plan so far.
        registration: inputs of the registration; None where there is no trained model yet.
    """

    def __init__(self, settings: Settings, home: Home) -> None:
        self.settings, self.home = settings, home
        self.steps: list[PlannedStep] = []
        self.registration: RegistrationInputs | None = None

    def add(self, step: str, exists: bool, inputs: Inputs) -> None:
        """Plan a step.

        Args:
            step: its name.
            exists: its result for these inputs exists.
            inputs: as they are now; an earlier step that runs may change them.
        """
        reasons = changes(self.home, step, inputs)
        if not exists:
            self.steps.append(PlannedStep(step, "runs", "; ".join(reasons) or "its result is missing"))
        elif self._pending:
            self.steps.append(PlannedStep(step, "depends", f"runs if {_shorten(self._pending)} changes its inputs"))
        else:
            self.steps.append(PlannedStep(step, "reused", "its inputs are the same"))

    @property
    def _pending(self) -> list[str]:
        return [planned.step for planned in self.steps if planned.state == "runs"]

    @cached_property
    def corpus(self) -> str | None:
        """Digest of the corpus as it is now; None before there is one."""
        return Corpus.open(self.home.curated).digest if (self.home.curated / SUMMARY).exists() else None

    def plan_data(self) -> None:
        """Plan ingestion, curation and validation."""
        for dataset in self.settings.datasets:
            inputs = dataset_inputs(dataset, self.settings.ingestion, self.home).by_name()
            step = f"read {dataset.card}"
            if comes_from_server(dataset, load_card(dataset.card)):
                self.steps.append(PlannedStep(step, "runs", "asks the server, and fetches only new series"))
            else:
                self.add(step, not changes(self.home, step, inputs), inputs)
        curation = curation_inputs(self.home.data, cards_of(self.settings), self.settings.curation)
        self.add("curate", is_current(self.home.curated, curation), curation.by_name())
        self.add("validate", is_validated(self.home), validation_inputs(self.home.curated).by_name())

    def plan_model(self) -> None:
        """Plan training, evaluation and registration."""
        settings, home = self.settings, self.home
        if self.corpus is None:
            self.steps += [
                PlannedStep(step, "runs", "no corpus yet") for step in (*settings.training.stages, "evaluate", "register")
            ]
            return
        jobs = stage_jobs(self.corpus, settings, home)
        parent = ""
        for stage, job in zip(settings.training.stages, jobs, strict=True):
            self.add(stage, is_trained(job.folder), stage_inputs(stage, settings, self.corpus, parent))
            parent = job.identity
        model = jobs[-1].folder / "model"
        if not is_trained(jobs[-1].folder):
            self.steps += [PlannedStep(step, "runs", "no trained model yet") for step in ("evaluate", "register")]
            return
        evaluation = evaluation_inputs(model, self.corpus, settings.evaluation, settings.seed)
        self.add("evaluate", is_sealed(home.evaluations / evaluation.digest[:SHORT]), evaluation.by_name())
        self.registration = RegistrationInputs(evaluation.weights, evaluation.digest, pinned_data(home), settings.digest())
        registration = self.registration.by_name()
        self.add("register", not changes(home, "register", registration), registration)


def _shorten(steps: list[str]) -> str:
    return ", ".join(steps) if len(steps) <= 2 else f"{steps[0]} or {len(steps) - 1} more"


def plan_run(settings: Settings, home: Home) -> tuple[list[PlannedStep], RegistrationInputs | None]:
    """Return what ``omnimri run`` would do now, step by step; nothing is written, and no service is contacted.

    Returns:
        The steps, and the inputs of the registration if there is a trained model for these settings.
    """
    planner = _Planner(settings, home)
    planner.plan_data()
    planner.plan_model()
    return planner.steps, planner.registration


def plan(settings: Settings, home: Home) -> list[PlannedStep]:
    """Return the steps of :func:`plan_run`."""
    return plan_run(settings, home)[0]


@contextmanager
def preparing(home: Home, waiting: Waiting, corpus_lock: ExitStack | None = None) -> Iterator[None]:
    """Be the only process that may change ``data/`` and the corpus.

    Args:
        home: whose data and corpus.
        waiting: receives a message before this process waits.
        corpus_lock: at the end keeps the corpus as it is, until the stack is closed and before another writer may begin.
    """
    with claim_data(home, waiting):
        yield
        if corpus_lock is not None:
            corpus_lock.enter_context(reading(home))


@contextmanager
def changing(home: Home, up_to_date: bool, waiting: Waiting) -> Iterator[None]:
    """Hold the corpus for a step of the preparation: exclusively, or, if its result is up to date, together with the readers."""
    with claim(home.locks / "corpus", shared=up_to_date, waiting=waiting):
        yield


@contextmanager
def reading(home: Home) -> Iterator[None]:
    """Keep the corpus as it is."""
    with claim(home.locks / "corpus", shared=True):
        yield
