"""Everything on one machine: Prefect's server, MLflow's server, a worker and the watcher, as children that are looked after.

A child that ends unasked is started again, with growing pauses. A run that lost its process is put in line again. On SIGTERM and
SIGINT the children end in the order of need, those first that use the others, and their children with them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import psutil

from components.errors import BadInput, JobFailed
from components.files import read_json, write_json
from components.home import Home
from flows.server.deploy import Deploying, deploy

SERVICES = "services.json"
DATABASE = "OMNIMRI_DATABASE_URL"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
START_S, STOP_S, LOOK_EVERY_S, RECOVER_EVERY_S = 180.0, 60.0, 0.5, 10.0
PAUSES_S = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
CALM_S = 120.0
"""A child that has run for so long is started without a pause when it ends."""


@dataclass(frozen=True)
class Addresses:
    """Where the services answer."""

    host: str = "127.0.0.1"
    prefect_port: int = 4200
    mlflow_port: int = 5000

    @property
    def prefect(self) -> str:
        """Prefect's pages."""
        return f"http://{self.host}:{self.prefect_port}"

    @property
    def prefect_api(self) -> str:
        """Prefect's interface for programs."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """MLflow's pages and its interface for programs."""
        return f"http://{self.host}:{self.mlflow_port}"

    def environment(self) -> dict[str, str]:
        """What a process needs to use the services."""
        return {"PREFECT_API_URL": self.prefect_api, "MLFLOW_TRACKING_URI": self.mlflow, "PREFECT_UI_URL": self.prefect}


@dataclass
class Child:
    """A process that ought to run.

    Attributes:
        groups: process groups of all its starts; what a killed child leaves behind is in one of them.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = 0.0
    groups: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Start it in a process group of its own."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.log.parent,
            )
        self.groups.append(self.process.pid)
        self.started = time.monotonic()

    def look_after(self) -> str | None:
        """Start it again if it has ended; what happened, if something did."""
        if self.process is None or self.process.poll() is None:
            return None
        now = time.monotonic()
        if self.not_before == 0.0:
            self._signal(signal.SIGKILL)  # what it had started: it holds a server's port, or writes into a worker's closed pipe
            self.failures = 0 if now - self.started > CALM_S else self.failures + 1
            pause = PAUSES_S[min(max(self.failures - 1, 0), len(PAUSES_S) - 1)]
            self.not_before = now + pause
            return f"{self.name} ended with status {self.process.returncode}; starting it again in {pause:.0f} s ({self.log})"
        if now >= self.not_before:
            self.not_before = 0.0
            self.start()
        return None

    def _signal(self, number: signal.Signals) -> None:
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, number)

    def stop(self) -> None:
        """SIGTERM to it and all that it started, SIGKILL to what is left after a while."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            deadline = time.monotonic() + STOP_S
            while time.monotonic() < deadline and any(_has_members(group) for group in self.groups):
                if self.process is not None:
                    self.process.poll()
                time.sleep(0.2)


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(one.status() != psutil.STATUS_ZOMBIE for one in _members(group))


def _members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def databases(url: str) -> tuple[str, str]:
    """Addresses of Prefect's and of MLflow's database on a PostgreSQL server.

    Raises:
        BadInput: not the address of a PostgreSQL server, or one that names a database.
    """
    scheme, found, rest = url.partition("://")
    server, _, database = rest.partition("/")
    if not found or scheme not in ("postgresql", "postgres") or not server.rpartition("@")[2] or database:
        raise BadInput(
            "not the address of a PostgreSQL server",
            where=DATABASE,
            remedy="postgresql://USER:PASSWORD@HOST:5432, without a database: it holds two of them, prefect and mlflow",
        )
    return f"postgresql+asyncpg://{server}/prefect", f"postgresql+psycopg2://{server}/mlflow"


def running(home: Home) -> Mapping[str, str] | None:
    """Environment of the services that this home is served by, if they run."""
    path = home.root / SERVICES
    if not path.exists():
        return None
    found = read_json(path)
    try:
        process = psutil.Process(found["pid"])
        there = abs(process.create_time() - found["started"]) < 1
    except psutil.NoSuchProcess:
        return None
    environment: Mapping[str, str] = found["environment"]
    return environment if there else None


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(url, timeout=3) as reply:  # noqa: S310 (an address of ours)
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Services:
    """The services of one home.

    Args:
        watch: options of the watcher.
        say: told what happens.
    """

    def __init__(
        self, home: Home, addresses: Addresses, deploying: Deploying, watch: list[str], say: Callable[[str], object]
    ) -> None:
        self.home, self.addresses, self.deploying, self.say = home, addresses, deploying, say
        self.children = self._children(watch)
        self._stopping = self._announced = False

    def _children(self, watch: list[str]) -> dict[str, Child]:
        home, at = self.home, self.addresses
        mine = {
            name: value for name, value in os.environ.items() if name not in (DATABASE, "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
        }
        mine.update({"OMNIMRI_HOME": str(home.root), "OMNIMRI_DATA": str(home.data)})
        database, store = os.environ.get(DATABASE), f"sqlite:///{home.mlflow / 'mlflow.db'}"
        servers = {**mine, "PREFECT_UI_URL": at.prefect}
        # With leases in memory, a server that was killed would fail their renewal, and so the runs that hold a limit.
        servers.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES)
        if database:
            servers["PREFECT_SERVER_DATABASE_CONNECTION_URL"], store = databases(database)
        clients = {**mine, **at.environment(), **self.deploying.environment()}
        # Connections come back: a server that is killed is there again in seconds.
        clients.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
        clients.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
        python, logs = [sys.executable, "-m"], home.root / "logs"

        def child(name: str, environment: dict[str, str], *words: str) -> Child:
            return Child(name, [*python, *words], environment, logs / f"{name}.log")

        where = ["--host", at.host, "--port"]
        mlflow = {**servers, "MLFLOW_BACKEND_STORE_URI": store}  # not among the words of the command: it may hold a password
        return {
            "prefect": child("prefect", servers, "prefect", "server", "start", *where, str(at.prefect_port)),
            "mlflow": child(
                "mlflow",
                mlflow,
                "mlflow",
                "server",
                *where,
                str(at.mlflow_port),
                "--workers",
                "1",
                "--no-serve-artifacts",
                "--default-artifact-root",
                (home.mlflow / "artifacts").as_uri(),
            ),
            "worker": child(
                "worker",
                clients,
                "prefect",
                "worker",
                "start",
                "--pool",
                self.deploying.pool,
                "--type",
                "process",
                "--name",
                f"omnimri-{socket.gethostname()}",
            ),
            "watcher": child("watcher", clients, "flows.cli", "watch", "--profile", self.deploying.profile, *watch),
        }

    def start(self) -> None:
        """Start everything, in the order of need.

        Raises:
            BadInput: a port is taken, or this home is served already.
            JobFailed: a service does not come up.
        """
        if running(self.home) is not None:
            raise BadInput("is served already", where=str(self.home.root), remedy="stop the other omnimri serve first")
        for port, option in ((self.addresses.prefect_port, "--port"), (self.addresses.mlflow_port, "--mlflow-port")):
            if not _free(self.addresses.host, port):
                raise BadInput("is taken by another program", where=f"port {port}", remedy=f"choose another with {option}")
        self.home.mlflow.mkdir(parents=True, exist_ok=True)
        self.home.prefect.mkdir(parents=True, exist_ok=True)
        os.environ.update(self.addresses.environment())
        process, self._announced = psutil.Process(), True
        write_json(
            self.home.root / SERVICES,
            {
                "pid": process.pid,
                "started": process.create_time(),
                "environment": self.addresses.environment(),
            },
        )
        for name in ("prefect", "mlflow"):
            self.children[name].start()
        self._await("prefect", f"{self.addresses.prefect_api}/health")
        self.say(f"Prefect    {self.addresses.prefect}")
        self._await("mlflow", f"{self.addresses.mlflow}/health")
        self.say(f"MLflow     {self.addresses.mlflow}")
        seconds = deploy(self.deploying)
        self.say(f"deployed   pipeline, curate, train, evaluate, promote (profile {self.deploying.profile}, {seconds:.0f} s)")
        for name in ("worker", "watcher"):
            self.children[name].start()

    def _await(self, name: str, url: str) -> None:
        child, deadline = self.children[name], time.monotonic() + START_S
        while not answers(url):
            if child.process is None or child.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-10:])
                raise JobFailed(f"did not come up:\n{tail}", where=name, remedy=f"the whole log: {child.log}")
            time.sleep(0.2)

    def run(self) -> None:
        """Look after the children until somebody asks to stop."""
        last = time.monotonic()
        while not self._stopping:
            for child in self.children.values():
                if told := child.look_after():
                    self.say(told)
            if time.monotonic() - last > RECOVER_EVERY_S:
                self._recover()
                last = time.monotonic()
            time.sleep(LOOK_EVERY_S)

    def _recover(self, cut_off: Collection[UUID] = ()) -> None:
        """A server that does not answer now is asked later."""
        from flows.server.recovery import recover

        if not answers(f"{self.addresses.prefect_api}/health"):
            return
        try:
            for one in recover(self.deploying.pool, cut_off):
                self.say(f"run {one.name} had lost its process: {one.outcome}")
        except Exception as error:
            self.say(f"runs could not be looked at ({type(error).__name__}); trying again")

    def ask_to_stop(self, number: int = 0, frame: object = None) -> None:
        """As a signal handler, or from another thread."""
        self._stopping = True

    def stop(self) -> None:
        """End the children, those first that use the others; runs that were cut off are put in line for the next start."""
        from flows.server.recovery import runs_under_way

        up = self.children["worker"].process is not None and answers(f"{self.addresses.prefect_api}/health")
        cut_off = runs_under_way(self.deploying.pool) if up else []
        for name in ("watcher", "worker"):
            self.children[name].stop()
        if up:
            self._recover(cut_off)
        for name in ("mlflow", "prefect"):
            self.children[name].stop()
        if self._announced:  # else it is that of another, which runs
            (self.home.root / SERVICES).unlink(missing_ok=True)


def describe(addresses: Addresses) -> str:
    """The addresses as one JSON object, for programs."""
    return json.dumps({"prefect": addresses.prefect, "prefect_api": addresses.prefect_api, "mlflow": addresses.mlflow})
