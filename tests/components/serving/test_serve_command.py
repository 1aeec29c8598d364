"""``omnimri models serve`` as a user starts it: the registered version behind the page, and nothing left when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from components.provenance import REPOSITORY
from tests.helpers.malformed import asked, nifti
from tests.helpers.ports import free_port
from tests.helpers.registered import Store

BEARER = {"Authorization": "Bearer secret"}


def test_a_registered_version_is_served_with_its_scope_until_the_process_ends(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    store.register()
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "models", "serve", "1", "--port", str(port)],
        env={**os.environ, "OMNIMRI_HOME": str(store.home.root), "OMNIMRI_TOKEN": "secret"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and f"page at http://127.0.0.1:{port}/" in process.stdout.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=10), headers=BEARER) as client:
            model = client.get("/api/model", timeout=120).json()
            assert model["title"] == "omnimri version 1" and model["scope"]["anatomies"] == ["brain"]
            refused = client.post("/invocations", content=asked(nifti(), "Segment the meniscus."), headers=JSON)
            assert refused.status_code == 400 and "not trained on: meniscus" in refused.json()["error"]["what"]
            uploaded = client.post("/api/images", files=[("files", ("Doe^Jane.nii", nifti()))])
            assert uploaded.status_code == 200 and list((store.home.root / "pacs").rglob("*.nii"))
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert not list((store.home.root / "pacs").rglob("*.nii")) and "Doe" not in errors


JSON = {"Content-Type": "application/json"}
