"""Checks of the Dockerfile without a daemon: hadolint's rules, and this project's rules for images."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.provenance import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text()
TARGETS = ("cpu", "cuda")


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return each stage's base image and instructions."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    parsed: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in filter(str.strip, lines):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            parsed[name] = (base, [])
        elif name:
            parsed[name][1].append((word, rest.strip()))
    return parsed


def all_instructions(target: str) -> list[tuple[str, str]]:
    """Return the instructions of a target after those of the stages that it is based on."""
    base, own = stages()[target]
    return [*(all_instructions(base) if base in stages() else []), *own]


def test_hadolint_reports_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    completed = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "info", "-"], input=TEXT, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_has_an_unprivileged_user_a_health_check_and_a_revision_label(target: str) -> None:
    instructions = all_instructions(target)
    assert [rest for word, rest in instructions if word == "USER"] == ["10001:10001"]
    assert instructions.index(("USER", "10001:10001")) > max(
        i for i, (word, _) in enumerate(instructions) if word in ("RUN", "COPY")
    )
    assert sum(word == "HEALTHCHECK" for word, _ in instructions) == 1
    (labels,) = [rest for word, rest in instructions if word == "LABEL"]
    assert 'org.opencontainers.image.revision="${COMMIT}"' in labels


def test_every_base_image_can_be_pinned_by_digest() -> None:
    bases = {base for base, _ in stages().values() if base not in stages()}
    assert bases == {"${PYTHON_BASE}"} and re.search(r"^ARG PYTHON_BASE=python:\d+\.\d+\.\d+-", TEXT, re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_images_contain_no_build_tools_and_no_pip_caches(target: str) -> None:
    copied = [rest for word, rest in all_instructions(target) if word == "COPY"]
    assert copied and all(rest.startswith(f"--from=packages-{target} ") for rest in copied)
    assert not any("pip install" in rest for _, rest in all_instructions(target))


def test_the_build_context_contains_only_allowed_files() -> None:
    allowed = (REPOSITORY / ".dockerignore").read_text().split()
    assert allowed[0] == "**"
    names = {line.lstrip("!").split("/")[0] for line in allowed if line.startswith("!")}
    assert names & {"data", ".omnimri", ".git", "tests", ".venv"} == set()
    assert {"components", "flows", "model_core", "kernels", "profiles", "constraints.txt", "pyproject.toml"} <= names


def test_user_and_group_equal_those_of_the_pods() -> None:
    from components.launching.kubernetes.manifests import USER_ID

    assert f"useradd --uid {USER_ID} --gid {USER_ID} " in TEXT
