"""What Prefect costs: the whole chain as a flow against the same steps called plainly.

    python -m benchmarks.orchestration [--profile debug] [--repeats 3]

Each run is a process of its own over fresh folders, in turns; its wall time counts from the start of Python. The flow talks to a
server that is running already: its start is a row of its own, as is what ``omnimri run`` takes when it starts a temporary one. A
second run over the same folders, where every step finds its work done, shows the cost by itself.
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
from components.settings import STAGES, Settings, load_settings


def plainly(settings: Settings) -> None:
    """Every step of the pipeline, one after the other, without flows."""
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
    for stage in STAGES:
        parent = results[-1] if results else None
        results.append(train_stage(stage, home.curated, settings, home, parent, run, open_launcher(settings)))
    model = results[-1].model_dir
    evaluation = evaluate(model, home.curated, settings.evaluation, home.evaluations, settings.seed)
    lineage = Lineage.of(settings, data.digest, curation.digest, results, validation.passed)
    found = register(model, evaluation, lineage, home.tracking_uri, run, settings.registry.name)
    if not refusal(found, "staging", home.tracking_uri, settings.registry):
        promote(found.version, "staging", home.tracking_uri, settings.registry)
    tracking.finish_pipeline(run, {f"{row.task}/{row.metric}": row.model for row in evaluation.rows}, [evaluation.report])


def environment(root: Path, server: str | None) -> dict[str, str]:
    """Environment of a run over ``root``."""
    from flows.cli.environment import OFFLINE_DEFAULTS

    ours = ("PREFECT_", "MLFLOW_TRACKING", "OMNIMRI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    mine = {"OMNIMRI_HOME": str(root / "home"), "OMNIMRI_DATA": str(root / "data")}
    return {**OFFLINE_DEFAULTS, **clean, **mine, **({"PREFECT_API_URL": server} if server else {})}


def timed(command: list[str], root: Path, server: str | None) -> float:
    """Wall time of a process, seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], env=environment(root, server), check=True, capture_output=True)
    return time.perf_counter() - began


class Server:
    """A Prefect server over SQLite, and how long it took to start."""

    def __init__(self, folder: Path, port: int) -> None:
        from flows.server.supervisor import answers

        self.address = f"http://127.0.0.1:{port}/api"
        settings = {**environment(folder, None), "PREFECT_HOME": str(folder / "prefect")}
        (folder / "prefect").mkdir(parents=True)
        began = time.perf_counter()
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not answers(f"{self.address}/health"):
            time.sleep(0.1)
        self.seconds = time.perf_counter() - began

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def measure(profile: str, repeats: int, folder: Path) -> list[dict[str, str]]:
    """All runs, in turns; rows of the table."""
    from components.samples import build_sample

    settings = load_settings(profile)
    for dataset in settings.datasets:
        if dataset.path is None:
            build_sample(dataset.card, folder / "sources" / dataset.card)
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
                    seconds.setdefault((which, way), []).append(timed(command, root, address))
                    print(f"{which} {way}: {seconds[which, way][-1]:.2f} s", flush=True)
        seconds["again", "flow, temporary server"] = [timed(flow, folder / "flow-0", None) for _ in range(repeats)]
    finally:
        server.stop()
    return table({("server", "start"): [server.seconds], **seconds}, profile)


def table(seconds: dict[tuple[str, str], list[float]], profile: str) -> list[dict[str, str]]:
    """A row for each kind of run. What a flow takes beyond the plain steps is the median over the turns, within which both were run
    one after the other: from turn to turn the machine changes by more than that."""
    rows = []
    for (which, way), found in seconds.items():
        plain = seconds.get((which, "plainly"))
        beyond = statistics.median(x - y for x, y in zip(found, plain, strict=True)) if plain else None
        rows.append(
            {
                "run": which,
                "way": way,
                "median_s": f"{statistics.median(found):.2f}",
                "least_s": f"{min(found):.2f}",
                "most_s": f"{max(found):.2f}",
                "repeats": str(len(found)),
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
    parser.add_argument("--plainly", action="store_true", help="run the steps here, without flows (used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.plainly:
        plainly(load_settings(arguments.profile))
        return
    with tempfile.TemporaryDirectory(prefix="omnimri-orchestration-") as folder:
        rows = measure(arguments.profile, arguments.repeats, Path(folder))
    write_rows(f"orchestration_{arguments.profile}", rows, f"prefect {version('prefect')}, {versions()}")


if __name__ == "__main__":
    main()
