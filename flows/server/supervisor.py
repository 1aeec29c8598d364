"""Supervision of the services of one machine: Prefect's server, MLflow's server, a worker and the watcher, as child processes.

A child that ends unexpectedly is restarted, with growing pauses. A run that lost its process is scheduled again.
On SIGTERM, SIGHUP and SIGINT the children are stopped, clients before servers, with the processes that they started. A guard
stops them if this process is killed.
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
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import psutil

from components.errors import BadInput, JobFailed
from components.files import read_state, write_json
from components.home import Home
from components.network import bypass_proxies, http_address, require_free_port
from components.processes import GUARDED, Guard, has_members, signal_groups, stop_groups
from components.tracking.relocation import relocate_if_moved, require_own_artifacts
from flows.server.deploy import Deployment, deploy
from flows.server.logins import MLFLOW_LOGIN, Logins, log_in

SERVICES = "services.json"
DATABASE, PREFECT_DATABASE = "OMNIMRI_DATABASE_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
START_S, STOP_S, CHECK_EVERY_S, RECOVER_EVERY_S = 180.0, 60.0, 0.5, 10.0
PAUSES_S = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
STABLE_S = 120.0
"""A child that has run for this time is restarted without a pause."""


@dataclass(frozen=True)
class Addresses:
    """Addresses of the services."""

    host: str = "127.0.0.1"
    prefect_port: int = 4200
    mlflow_port: int = 5000

    @property
    def prefect(self) -> str:
        """Address of Prefect's UI."""
        return http_address(self.host, self.prefect_port)

    @property
    def prefect_api(self) -> str:
        """Address of Prefect's API."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """Address of MLflow's UI and API."""
        return http_address(self.host, self.mlflow_port)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a process that uses the services."""
        return {"PREFECT_API_URL": self.prefect_api, "MLFLOW_TRACKING_URI": self.mlflow, "PREFECT_UI_URL": self.prefect}


@dataclass
class Child:
    """A process to keep running.

    Attributes:
        name: of the service.
        command: words of its command line.
        environment: its environment variables.
        log: file of its output.
        process: the last start; None before the first.
        started: time of the last start, seconds.
        failures: number of ends in a row shortly after a start.
        not_before: time of the next start, seconds; 0 while the process runs.
        groups: process groups of its starts that still have processes: a killed child leaves some behind.
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
        """Start the process in a process group of its own."""
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

    def restart_if_ended(self) -> str | None:
        """Restart the process if it has ended; return a message about its end, once."""
        if self.process is None or self.process.poll() is None:
            return None
        now = time.monotonic()
        if self.not_before == 0.0:
            signal_groups(self.groups, signal.SIGKILL)  # its children may hold a port, or write into a closed pipe
            self.failures = 0 if now - self.started > STABLE_S else self.failures + 1
            pause = PAUSES_S[min(max(self.failures - 1, 0), len(PAUSES_S) - 1)]
            self.not_before = now + pause
            return f"{self.name} ended with status {self.process.returncode}; restart in {pause:.0f} s ({self.log})"
        if now >= self.not_before:
            self.groups = [group for group in self.groups if has_members(group)]  # later, another process may have the number
            if not self.groups or now >= self.not_before + STOP_S:
                self.not_before = 0.0
                self.start()
        return None

    def stop(self) -> None:
        """Send SIGTERM to the process and its children, and SIGKILL to those that remain after a while."""
        stop_groups(self.groups, STOP_S, lambda: None if self.process is None else self.process.poll())


def database_urls(url: str) -> tuple[str, str]:
    """Return the addresses of Prefect's and of MLflow's database on a PostgreSQL server.

    Raises:
        BadInput: not the address of a PostgreSQL server, or it names a database.
    """
    scheme, separator, rest = url.partition("://")
    server, _, database = rest.partition("/")
    if not separator or scheme not in ("postgresql", "postgres") or not server.rpartition("@")[2] or database:
        raise BadInput(
            "not the address of a PostgreSQL server",
            where=DATABASE,
            remedy="postgresql://USER:PASSWORD@HOST:5432, without a database: the server has two of them, prefect and mlflow",
        )
    return f"postgresql+asyncpg://{server}/prefect", f"postgresql+psycopg2://{server}/mlflow"


def running_services(home: Home) -> Mapping[str, str] | None:
    """Return the environment variables of this home's services; None if they do not run."""
    path = home.root / SERVICES
    stored = read_state(path)
    if "pid" not in stored:
        return None
    if stored.get("home", str(home.root)) != str(home.root):  # a copy of a home whose services run: they are not ours
        return None
    try:
        is_same = abs(psutil.Process(stored["pid"]).create_time() - stored["started"]) < 1
    except psutil.NoSuchProcess:
        return None
    environment: Mapping[str, str] = stored["environment"]
    return environment if is_same else None


def answers(url: str) -> bool:
    """Return whether a server answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=3) as reply:  # noqa: S310 (our own address)
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Supervisor:
    """Starts, watches and stops the services of one home.

    Args:
        home: whose services they are.
        addresses: of the servers.
        deployment: options of the deployed flows.
        watch_options: options of ``omnimri watch``.
        log: receives messages.
        logins: that the servers ask for.
    """

    def __init__(
        self,
        home: Home,
        addresses: Addresses,
        deployment: Deployment,
        watch_options: list[str],
        log: Callable[[str], object],
        logins: Logins,
    ) -> None:
        self.home, self.addresses, self.deployment, self.log, self.logins = home, addresses, deployment, log, logins
        self.children = self._define_children(watch_options)
        self._stopping = self._announced = self._is_started = False
        self._guard: Guard | None = None

    def _define_children(self, watch_options: list[str]) -> dict[str, Child]:
        """Return the services by name."""
        home, addresses, deployment = self.home, self.addresses, self.deployment
        servers, store = self._server_environment()
        clients = self._client_environment()
        mlflow = {**servers, "MLFLOW_BACKEND_STORE_URI": store}  # not on the command line: the address may contain a password
        ask_login = ("--app-name", "basic-auth") if self.logins.mlflow else ()
        host, artifacts = ("--host", addresses.host), (home.mlflow / "artifacts").as_uri()
        serve_prefect = ("prefect", "server", "start", *host, "--port", str(addresses.prefect_port))
        serve_mlflow = ("mlflow", "server", *host, "--port", str(addresses.mlflow_port), "--workers", "1")
        store_artifacts = ("--no-serve-artifacts", "--default-artifact-root", artifacts)
        start_worker = ("prefect", "worker", "start", "--pool", deployment.pool, "--type", "process")
        watch = ("flows.cli", "watch", "--profile", deployment.profile, *watch_options)
        return {
            "prefect": self._child("prefect", servers, *serve_prefect),
            "mlflow": self._child("mlflow", mlflow, *serve_mlflow, *store_artifacts, *ask_login),
            "worker": self._child("worker", clients, *start_worker, "--name", f"omnimri-{socket.gethostname()}"),
            "watcher": self._child("watcher", clients, *watch),
        }

    def _child(self, name: str, environment: dict[str, str], *module: str) -> Child:
        return Child(name, [sys.executable, "-m", *module], environment, self.home.logs / f"{name}.log")

    def _common_environment(self) -> dict[str, str]:
        """Return this process's environment without addresses of other services."""
        foreign = (DATABASE, MLFLOW_LOGIN, "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
        inherited = {name: value for name, value in os.environ.items() if name not in foreign}
        return {**inherited, "OMNIMRI_HOME": str(self.home.root), "OMNIMRI_DATA": str(self.home.data)}

    def _server_environment(self) -> tuple[dict[str, str], str]:
        """Return the environment of the servers, and the address of MLflow's database."""
        environment = {**self._common_environment(), "PREFECT_UI_URL": self.addresses.prefect}
        # With leases in memory, a server that was killed would fail their renewal, and so the runs that hold a limit.
        environment.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES)
        store = self.home.local_store
        if database := os.environ.get(DATABASE):
            environment[PREFECT_DATABASE], store = database_urls(database)
        return environment, store

    def _client_environment(self) -> dict[str, str]:
        """Return the environment of the worker and the watcher."""
        environment = {**self._common_environment(), **self.addresses.environment(), **self.deployment.environment()}
        environment |= self.logins.client_environment()
        environment.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")  # a server that was killed answers again after seconds
        environment.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
        return environment

    def start(self) -> None:
        """Start the servers, deploy the flows, then start the clients.

        Raises:
            BadInput: a port is in use, the host is not this machine's, or this home has running services.
            JobFailed: a service does not start.
        """
        if running_services(self.home) is not None:
            raise BadInput("its services are running", where=str(self.home.root), remedy="stop the other omnimri serve first")
        if self.addresses.prefect_port == self.addresses.mlflow_port:
            remedy = "choose another with --mlflow-port"
            raise BadInput("two services on one port", where=f"port {self.addresses.mlflow_port}", remedy=remedy)
        for port, option in ((self.addresses.prefect_port, "--port"), (self.addresses.mlflow_port, "--mlflow-port")):
            require_free_port(self.addresses.host, port, "--host", option)
        bypass_proxies(self.addresses.host)
        self.home.mlflow.mkdir(parents=True, exist_ok=True)
        relocate_if_moved(self.home.local_store)
        if self.logins.mlflow:
            self.children["mlflow"].environment |= self.logins.prepare_mlflow(self.home)
        log_in()
        self.home.prefect.mkdir(parents=True, exist_ok=True)
        os.environ.update(self.addresses.environment())
        process, self._announced = psutil.Process(), True
        write_json(
            self.home.root / SERVICES,
            {
                "home": str(self.home.root),
                "pid": process.pid,
                "started": process.create_time(),
                "environment": self.addresses.environment(),
            },
        )
        self._guard = Guard(STOP_S)
        for child in self.children.values():
            child.environment = {**child.environment, GUARDED: self._guard.mark}
        self._start("prefect", "mlflow")
        self._await("prefect", f"{self.addresses.prefect_api}/health")
        self.log(f"Prefect    {self.addresses.prefect}")
        self._await("mlflow", f"{self.addresses.mlflow}/health")
        self.log(f"MLflow     {self.addresses.mlflow}")
        self._check_artifacts()
        seconds = deploy(self.deployment)
        self.log(f"deployed   pipeline, curate, train, evaluate, promote (profile {self.deployment.profile}, {seconds:.0f} s)")
        self._start("worker", "watcher")
        self._is_started = True

    def _check_artifacts(self) -> None:
        """Check the places of artifacts in a PostgreSQL database, which does not move with the home as the local store does."""
        if os.environ.get(DATABASE):
            for place in require_own_artifacts(self.addresses.mlflow, self.home):
                self.log(f"warning: runs of existing experiments write their artifacts to {place}, as the database says")

    def _start(self, *names: str) -> None:
        for name in names:
            self.children[name].start()
            self._guard_children()

    def _guard_children(self) -> None:
        """Tell the guard which processes to stop, clients before servers, if this one is killed."""
        if self._guard is not None:
            self._guard.watch(group for child in reversed(self.children.values()) for group in child.groups[-1:])

    def _await(self, name: str, url: str) -> None:
        child, deadline = self.children[name], time.monotonic() + START_S
        while not answers(url):
            if child.process is None or child.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-10:])
                raise JobFailed(f"did not start:\n{tail}", where=name, remedy=f"full log: {child.log}")
            time.sleep(0.2)

    def run(self) -> None:
        """Watch the children until a stop is requested."""
        last = time.monotonic()
        while not self._stopping:
            for child in self.children.values():
                started = child.started
                if message := child.restart_if_ended():
                    self.log(message)
                if child.started > started:
                    self._guard_children()
            if time.monotonic() - last > RECOVER_EVERY_S:
                self._recover()
                last = time.monotonic()
            time.sleep(CHECK_EVERY_S)

    def _recover(self, interrupted: Collection[UUID] = ()) -> None:
        """Recover runs that lost their process; do nothing while the server does not answer."""
        from flows.server.recovery import recover

        if not answers(f"{self.addresses.prefect_api}/health"):
            return
        try:
            for recovery in recover(self.deployment.pool, interrupted):
                self.log(f"run {recovery.name} lost its process: {recovery.outcome}")
        except Exception as error:
            self.log(f"recovery of runs failed ({type(error).__name__}); trying again")

    def request_stop(self, number: int = 0, frame: object = None) -> None:
        """Request the end of :meth:`run`; usable as a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """Stop the children, clients before servers; interrupted runs are scheduled for the next start."""
        from flows.server.recovery import active_run_ids

        is_up = self.children["worker"].process is not None and answers(f"{self.addresses.prefect_api}/health")
        interrupted = active_run_ids(self.deployment.pool) if is_up else []
        for name in ("watcher", "worker"):
            self.children[name].stop()
        if is_up:
            self._recover(interrupted)
        for name in ("mlflow", "prefect"):
            self.children[name].stop()
        if self._guard is not None:
            if not self._is_started:
                self._guard.stop_remaining(STOP_S)
            self._guard.release()
        if self._announced:  # otherwise the file belongs to another supervisor, which is running
            (self.home.root / SERVICES).unlink(missing_ok=True)


def to_json(addresses: Addresses) -> str:
    """Return the addresses as one JSON object."""
    return json.dumps({"prefect": addresses.prefect, "prefect_api": addresses.prefect_api, "mlflow": addresses.mlflow})
