"""Overhead of Prefect: the whole pipeline as a flow versus the same steps called directly.

    python -m benchmarks.orchestration [--profile debug] [--repeats 3]

Each run is a process of its own with new folders; flow and direct runs alternate, and wall time includes the start of Python. The
flow uses a server that runs already; the start of that server and ``omnimri run`` with a temporary server have rows of their own. A
second run over the same folders, in which every step reuses its result, isolates the overhead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import versions, write_rows
from components.home import Home
from components.provenance import digest
from components.settings import Settings, load_settings


def run_without_flows(settings: Settings) -> None:
    """Run every step of the pipeline in order, without flows."""
    from components.catalog import load_card
    from components.curation import curate
    from components.evaluation import evaluate
    from components.ingestion import ingest
    from components.ingestion.deidentification.pseudonyms import load_key
    from components.launching import open_launcher
    from components.registry import Lineage, promote, refusal, register
    from components.tracking import Tracking
    from components.training import StageResult, train_stage
    from components.validation import validate
    from components.versioning import DataRepository

    home = Home.open()
    cards = [load_card(dataset.card) for dataset in settings.datasets]
    for dataset, card in zip(settings.datasets, cards, strict=True):
        source = dataset.path or home.sources / dataset.card
        ingest(card, source, home.data, load_key(settings.ingestion, home), workers=settings.ingestion.workers)
    data = DataRepository(home.data.parent, home.data).snapshot()
    curation = curate(home.data, cards, home.curated, settings.curation)
    validation = validate(home.curated, home.validation)
    validation.require()
    tracking = Tracking(home.tracking_uri, home)
    run = tracking.pipeline_run(digest(settings, data.digest), settings, data.digest, {"corpus_digest": curation.digest})
    results: list[StageResult] = []
    for stage in settings.training.stages:
        parent = results[-1] if results else None
        results.append(train_stage(stage, home.curated, settings, home, parent, run, open_launcher(settings)))
    model = results[-1].model_dir
    evaluation = evaluate(model, home.curated, settings.evaluation, home.evaluations, settings.seed)
    lineage = Lineage.of(settings, data.digest, curation.digest, results, validation.passed)
    candidate = register(model, evaluation, lineage, home.tracking_uri, run, settings.registry.name)
    if not refusal(candidate, "staging", home.tracking_uri, settings.registry):
        promote(candidate.version, "staging", home.tracking_uri, settings.registry)
    tracking.finish_pipeline(run, {f"{row.task}/{row.metric}": row.model for row in evaluation.rows}, [evaluation.report])


def environment(root: Path, server: str | None) -> dict[str, str]:
    """Return the environment of a run over ``root``."""
    from flows.cli.environment import OFFLINE_DEFAULTS

    prefixes = ("PREFECT_", "MLFLOW_TRACKING", "OMNIMRI_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    folders = {"OMNIMRI_HOME": str(root / "home"), "OMNIMRI_DATA": str(root / "data")}
    return {**OFFLINE_DEFAULTS, **inherited, **folders, **({"PREFECT_API_URL": server} if server else {})}


def time_process(command: list[str], root: Path, server: str | None) -> float:
    """Run a process and return its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], env=environment(root, server), check=True, capture_output=True)
    return time.perf_counter() - started


class Server:
    """Prefect server with SQLite; ``seconds`` is its start time."""

    def __init__(self, folder: Path, port: int) -> None:
        from flows.server.supervisor import answers

        self.address = f"http://127.0.0.1:{port}/api"
        settings = {**environment(folder, None), "PREFECT_HOME": str(folder / "prefect")}
        (folder / "prefect").mkdir(parents=True)
        started = time.perf_counter()
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not answers(f"{self.address}/health"):
            time.sleep(0.1)
        self.seconds = time.perf_counter() - started

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait()


def measure(profile: str, repeats: int, folder: Path) -> list[dict[str, str]]:
    """Run everything in alternation and return the rows of the table."""
    from components.catalog import load_card
    from components.samples import build_sample

    settings = load_settings(profile)
    for dataset in settings.datasets:
        if dataset.path is None:
            build_sample(load_card(dataset.card), folder / "sources" / dataset.card, dataset.patients)
    server = Server(folder / "server", 4377)
    flow, plain = ["flows.cli", "run", "--profile", profile], ["benchmarks.orchestration", "--plainly", "--profile", profile]
    ways = {"plainly": (plain, None), "flow": (flow, server.address)}
    seconds: dict[tuple[str, str], list[float]] = {}
    try:
        for number in range(repeats):
            for way, (command, address) in ways.items():
                root = folder / f"{way}-{number}"
                shutil.copytree(folder / "sources", root / "home" / "sources", copy_function=os.link)
                for which in ("first", "again"):
                    seconds.setdefault((which, way), []).append(time_process(command, root, address))
                    print(f"{which} {way}: {seconds[which, way][-1]:.2f} s", flush=True)
        seconds["again", "flow, temporary server"] = [time_process(flow, folder / "flow-0", None) for _ in range(repeats)]
    finally:
        server.stop()
    return build_rows({("server", "start"): [server.seconds], **seconds}, profile)


def build_rows(seconds: dict[tuple[str, str], list[float]], profile: str) -> list[dict[str, str]]:
    """Return a row for each kind of run.

    The overhead of a flow is the median over rounds of the difference to the direct run of the same round, because the speed of the
    machine varies more between rounds than the overhead is large.
    """
    rows = []
    for (which, way), times in seconds.items():
        plain = seconds.get((which, "plainly"))
        beyond = statistics.median(x - y for x, y in zip(times, plain, strict=True)) if plain else None
        rows.append(
            {
                "run": which,
                "way": way,
                "median_s": f"{statistics.median(times):.2f}",
                "least_s": f"{min(times):.2f}",
                "most_s": f"{max(times):.2f}",
                "repeats": str(len(times)),
                "beyond_plain_s": "" if beyond is None else f"{beyond:.2f}",
                "beyond_plain": f"{beyond / statistics.median(plain):.4f}" if plain and beyond is not None else "",
                "profile": profile,
            }
        )
    return rows


def main() -> None:
    """Measure and write ``results/orchestration_PROFILE.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="debug")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--plainly", action="store_true", help="run the steps in this process, without flows (used by the benchmark itself)"
    )
    arguments = parser.parse_args()
    if arguments.plainly:
        run_without_flows(load_settings(arguments.profile))
        return
    with tempfile.TemporaryDirectory(prefix="omnimri-orchestration-") as folder:
        rows = measure(arguments.profile, arguments.repeats, Path(folder))
    write_rows(f"orchestration_{arguments.profile}", rows, f"prefect {version('prefect')}, {versions()}")


if __name__ == "__main__":
    main()
