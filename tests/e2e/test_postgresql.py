"""The whole pipeline with the state of both servers in PostgreSQL, named by one variable; its password is stored nowhere else.

The database does not move with the home: a moved one is refused until the old place leads to the new one.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from components.model_files import resolve_model
from tests.helpers.ports import free_port
from tests.helpers.served import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PASSWORD = "a-secret-word"


def _find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs: on the path, or Debian's; None without them."""
    folders = [Path(path).parent for path in [shutil.which("postgres")] if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder.resolve() for folder in folders if (folder / "initdb").exists() and (folder / "createdb").exists()), None)


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server with the two databases, and yield its address."""
    programs = _find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    root = tmp_path_factory.mktemp("postgresql")
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("run as another user than root, or create a user postgres")
        user = "postgres"
        for folder in (root, *root.parents[:2]):
            folder.chmod(0o755)
        shutil.chown(root, user)
    (root / "password").write_text(PASSWORD)
    port = free_port()

    def run(*words: str) -> None:
        subprocess.run(words, check=True, user=user, capture_output=True, cwd=root, env={**os.environ, "PGPASSWORD": PASSWORD})

    run(str(programs / "initdb"), "-D", "state", "-U", "omnimri", "--auth", "scram-sha-256", "--pwfile", "password")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
    run(str(programs / "pg_ctl"), "-D", "state", "-w", "-l", "log", "-o", options, "start")
    try:
        for name in ("prefect", "mlflow"):
            run(str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "omnimri", name)
        yield f"postgresql://omnimri:{PASSWORD}@127.0.0.1:{port}"
    finally:
        run(str(programs / "pg_ctl"), "-D", "state", "-m", "immediate", "stop")


def test_both_servers_keep_their_state_in_postgresql(database: str, tmp_path: Path) -> None:
    import psycopg2

    with served(tmp_path, OMNIMRI_DATABASE_URL=database) as site:
        for process in [site.child("worker start"), site.child("watch")]:
            assert process is not None and PASSWORD not in str(process.environ())
        run = site.run("scheduled pipeline", "pipeline")
        assert site.ended(run, 900) == "COMPLETED"
        rows = {}
        for name, table in (("prefect", "flow_run"), ("mlflow", "model_versions")):
            with psycopg2.connect(f"{database}/{name}") as connection, connection.cursor() as cursor:
                cursor.execute(f"select count(*) from {table}")
                rows[name] = cursor.fetchone()[0]  # type: ignore[index]
        assert rows["mlflow"] == 1 and rows["prefect"] >= 7
        assert not list(site.home.root.rglob("*.db"))
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
    assert PASSWORD not in (tmp_path / "serve.log").read_text()

    home, moved = tmp_path / "home", tmp_path / "moved"
    moved.mkdir()
    for name in ("home", "data", "source"):
        (tmp_path / name).rename(moved / name)
    profile = (tmp_path / "tiny.yaml").read_text().replace(str(tmp_path), str(moved))
    (moved / "tiny.yaml").write_text(profile)
    with pytest.raises(AssertionError, match="which do not exist") as refused, served(moved, OMNIMRI_DATABASE_URL=database):
        pass
    assert not home.exists() and PASSWORD not in str(refused.value)
    link = re.search(r"the new one: (.*)\)", str(refused.value))
    assert link is not None
    subprocess.run(["bash", "-c", link[1]], check=True)
    with served(moved, OMNIMRI_DATABASE_URL=database) as site:
        (version,) = mlflow.MlflowClient(site.addresses["mlflow"]).search_model_versions()
        assert (resolve_model(f"models:/{version.name}/{version.version}", site.addresses["mlflow"]) / "model.safetensors").exists()
