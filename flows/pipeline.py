"""The whole pipeline: data -> corpus -> four stages -> evaluation -> a registered, promoted model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from prefect import flow

from components.curation.table_rows import CurationReport
from components.evaluation import EvaluationReport
from components.home import Home
from components.locks import claim
from components.provenance import code_digest, digest
from components.registry import Lineage, ModelVersion
from components.registry.inputs import RegistrationInputs
from components.resources import PeakMemory
from components.settings import Settings
from components.tracking import Tracking
from components.tracking.runs import open_client
from components.validation import ValidationReport
from flows.artifacts import flow_run_link, publish_registration
from flows.curate import curate_corpus
from flows.evaluate import evaluate_model
from flows.ingest import ingest_datasets
from flows.pipeline_report import PipelineReport, data_state, record_run
from flows.promote import register_and_stage
from flows.reporting import report_waiting
from flows.steps import preparing, record_step
from flows.train import cancel_jobs, train_stages

FLOW_RUN_TAG = "prefect.flow_run"


@dataclass
class Stopwatch:
    """Wall time of the parts of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure one part."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


@dataclass(frozen=True)
class Candidate:
    """An evaluated, registered version, the inputs of its registration, and why it stays candidate ("" if it is in staging)."""

    version: ModelVersion
    inputs: RegistrationInputs
    evaluation: EvaluationReport
    run_id: str
    refused: str


def train_candidate(
    settings: Settings, data_digest: str, curation: CurationReport, validation: ValidationReport, watch: Stopwatch
) -> Candidate:
    """Train on a corpus, evaluate and register. The caller holds the corpus (:func:`flows.steps.reading`)."""
    home = Home.open()
    tracking = Tracking(home.tracking_uri, home)
    with watch.measure("train"):
        identity = digest(settings, data_digest, curation.digest, code_digest("flows", "components", "model_core", "kernels"))
        with claim(home.locks / "registry"):
            run_id = tracking.pipeline_run(identity, settings, data_digest, {"corpus_digest": curation.digest})
        open_client(home.tracking_uri, home).set_tag(run_id, FLOW_RUN_TAG, flow_run_link())
        stages = train_stages(settings, run_id)
    model = stages[-1].model_dir
    with watch.measure("evaluate"):
        evaluation = evaluate_model(model, settings.evaluation, settings.seed)
    with watch.measure("register + stage"):
        lineage = Lineage.of(settings, data_digest, curation.digest, stages, validation.passed)
        version, refused = register_and_stage(model, evaluation, lineage, run_id, settings.registry)
    scores = {f"{row.task}/{row.metric}": row.model for row in evaluation.rows}
    tracking.finish_pipeline(run_id, scores, [evaluation.report])
    inputs = RegistrationInputs(version.tags["weights_digest"], evaluation.digest, data_digest, settings.digest())
    record_step(home, "register", inputs.by_name(), evaluation.report)
    publish_registration(version, run_id, refused)
    return Candidate(version, inputs, evaluation, run_id, refused)


@flow(name="pipeline", flow_run_name="pipeline {settings.profile}", validate_parameters=False, on_cancellation=[cancel_jobs])
def pipeline(settings: Settings) -> PipelineReport:
    """Run every step; results whose inputs have not changed are reused."""
    home, watch = Home.open(), Stopwatch()
    with PeakMemory() as memory, ExitStack() as corpus_lock:
        with preparing(home, report_waiting, corpus_lock):
            with watch.measure("ingest"):
                ingests, data = ingest_datasets(settings.datasets, settings.ingestion, settings.pacs)
                versioned = data_state(home)
            with watch.measure("curate + validate"):
                curation, validation = curate_corpus(settings)
        candidate = train_candidate(settings, data.digest, curation, validation, watch)
    report = PipelineReport(
        profile=settings.profile,
        data_digest=data.digest,
        corpus_digest=curation.digest,
        volumes=curation.volumes_total,
        quarantined=sum(len(report.quarantined) for report in ingests),
        rows=candidate.evaluation.rows,
        model=candidate.version,
        run_id=candidate.run_id,
        report=candidate.evaluation.report,
        data_docs=validation.data_docs,
        tracking_uri=home.tracking_uri,
        seconds=watch.seconds,
        peak_memory_mib=round(memory.mib),
        refused=candidate.refused,
    )
    record_run(home, candidate.inputs, versioned, report)
    return report
