"""The whole chain: data -> corpus -> four stages -> evaluation -> a registered, promoted model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefect import flow

from components.evaluation import ResultRow
from components.home import Home
from components.provenance import code_digest, digest
from components.registry import Lineage, ModelVersion
from components.resources import PeakMemory
from components.settings import Settings
from components.tracking import Tracking
from flows.curate import curate_corpus
from flows.evaluate import evaluate_model
from flows.ingest import ingest_datasets
from flows.promote import register_and_stage
from flows.train import cancel_jobs, train_stages


@dataclass(frozen=True)
class PipelineReport:
    """What one run did and where to look.

    Attributes:
        seconds: wall time by step, seconds.
        peak_memory_mib: highest resident memory of the run's process tree, MiB.
        refused: why the model was not promoted to staging; empty if it was.
    """

    profile: str
    data_digest: str
    corpus_digest: str
    volumes: int
    quarantined: int
    rows: tuple[ResultRow, ...]
    model: ModelVersion
    run_id: str
    report: Path
    data_docs: Path
    tracking_uri: str
    seconds: dict[str, float]
    peak_memory_mib: float
    refused: str


@dataclass
class Stopwatch:
    """Wall time by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


@flow(name="pipeline", validate_parameters=False, on_cancellation=[cancel_jobs])
def pipeline(settings: Settings) -> PipelineReport:
    """Run every step; what has not changed since the last run is found, not made again."""
    home, watch = Home.open(), Stopwatch()
    tracking = Tracking(home.tracking_uri, home)
    with PeakMemory() as memory:
        with watch.step("ingest"):
            ingests, data = ingest_datasets(settings.datasets, settings.ingestion)
        with watch.step("curate + validate"):
            curation, validation = curate_corpus(settings)
        with watch.step("train"):
            identity = digest(settings, data.digest, curation.digest, code_digest("flows", "components", "model_core", "kernels"))
            run_id = tracking.pipeline_run(identity, settings, data.digest, {"corpus_digest": curation.digest})
            stages = train_stages(settings, run_id)
        model = stages[-1].model_dir
        with watch.step("evaluate"):
            evaluation = evaluate_model(model, settings.evaluation, settings.seed)
        with watch.step("register + stage"):
            lineage = Lineage.of(settings, data.digest, curation.digest, stages, validation.passed)
            version, refused = register_and_stage(model, evaluation, lineage, run_id, settings.registry)
        scores = {f"{row.task}/{row.metric}": row.model for row in evaluation.rows}
        tracking.finish_pipeline(run_id, scores, [evaluation.report])
    return PipelineReport(
        profile=settings.profile,
        data_digest=data.digest,
        corpus_digest=curation.digest,
        volumes=curation.volumes_total,
        quarantined=sum(len(report.quarantined) for report in ingests),
        rows=evaluation.rows,
        model=version,
        run_id=run_id,
        report=evaluation.report,
        data_docs=validation.data_docs,
        tracking_uri=home.tracking_uri,
        seconds=watch.seconds,
        peak_memory_mib=round(memory.mib),
        refused=refused,
    )
