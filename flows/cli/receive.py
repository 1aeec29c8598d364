"""``omnimri receive``: take studies that an archive or a scanner sends."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.home import Home
from components.processes import on_stop
from components.settings import DatasetSettings, load_settings
from flows.cli import preflight
from flows.cli.options import ProfileOption, SetOption

if TYPE_CHECKING:
    from components.catalog import DatasetCard
    from components.pacs.fetching import FetchedSeries
    from components.pacs.receiver import Listener

app = typer.Typer()


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command("receive", epilog="Example: omnimri receive my-dataset --sender PACS --port 11112")
def receive(
    dataset: Annotated[str, typer.Argument(help="id of the dataset card")],
    port: Annotated[int, typer.Option(help="port to listen on")] = 11112,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    ae_title: Annotated[str, typer.Option(help="application entity title that senders call")] = "OMNIMRI",
    sender: Annotated[list[str] | None, typer.Option(help="title that may send; repeat it for several")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file of our certificate, for TLS")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="PEM file of its private key")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authority that signs the certificates of senders")] = None,
    quiet: Annotated[float, typer.Option(min=0.0, help="seconds without a further object, after which a study is ingested")] = 60.0,
    workers: Annotated[int, typer.Option(min=1, help="number of processes")] = 2,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Receive studies by C-STORE until stopped; de-identify, quarantine and version them. The sender keeps the originals."""
    from components.ingestion.deidentification.pseudonyms import check_key, load_key
    from components.pacs.receiver import Listener

    (card,) = preflight.check_cards((DatasetSettings(card=dataset),))
    settings, home = load_settings(profile, overrides), Home.open()
    limit = int(4 * settings.pacs.batch_gb * 1e9)
    listener = Listener(host, port, ae_title, tuple(sender or ()), limit, certificate, certificate_key, ca)
    public_key = settings.ingestion.public_demo_key and not card.has_real_patients
    key = load_key(settings.ingestion.model_copy(update={"public_demo_key": public_key}), home)
    check_key(key, card)
    stopped: list[int] = []
    on_stop(lambda received, _: stopped.append(received), signal.SIGINT)
    _receive(listener, _Target(card, home, key, workers), quiet, stopped)


@dataclass(frozen=True)
class _Target:
    """The dataset that receives, see :class:`components.pacs.update.DatasetUpdate`."""

    card: DatasetCard
    home: Home
    key: bytes
    workers: int


def _receive(listener: Listener, target: _Target, quiet_s: float, stopped: list[int]) -> None:
    """Receive and ingest until ``stopped`` has an entry; then ingest what has arrived."""
    from components.pacs.originals import originals_folder
    from components.pacs.receiver import Inbox, Receiver

    with originals_folder(target.home) as folder:
        inbox = Inbox(folder, listener.max_bytes)
        with Receiver(listener, inbox) as receiver:
            _log(f"listening on {listener.host}:{listener.port} as {listener.ae_title}")
            while not stopped:
                time.sleep(min(0.2, quiet_s / 4 + 0.01))
                if not receiver.is_busy and (settled := inbox.settled(quiet_s)) is not None:
                    _ingest(*settled, target)
        if (settled := inbox.settled(0)) is not None:
            _ingest(*settled, target)


def _ingest(received: list[FetchedSeries], folder: Path, target: _Target) -> None:
    """Ingest and version series, and remove their originals."""
    from components.pacs.receiver import ingest_received
    from components.pacs.update import DatasetUpdate
    from flows.cli.data import open_repository
    from flows.steps import changing, preparing

    def committing() -> AbstractContextManager[None]:
        return changing(target.home, False, _log)

    update = DatasetUpdate(target.card, target.home, target.key, target.workers, committing)
    with preparing(target.home, _log):
        ingest_received(received, folder, update, _log)
        version = open_repository().snapshot()
    shutil.rmtree(folder, ignore_errors=True)
    if (report := update.report) is not None:
        _log(
            f"{target.card.id}: {report.series} series of {report.patients} patients, {report.files_new} files new, "
            f"{len(report.quarantined)} inputs in quarantine; data version {version.digest}"
        )
