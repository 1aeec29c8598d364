"""The Dockerfile, without a daemon: hadolint's rules, and what the house asks of every image."""

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
    """Stage -> (what it starts from, its instructions)."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in filter(str.strip, lines):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        elif name:
            found[name][1].append((word, rest.strip()))
    return found


def whole(target: str) -> list[tuple[str, str]]:
    """Instructions of a target with those of the stages that it starts from."""
    base, own = stages()[target]
    return [*(whole(base) if base in stages() else []), *own]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", "--failure-threshold", "info", "-"], input=TEXT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_special_says_whether_it_is_well_and_where_it_comes_from(target: str) -> None:
    instructions = whole(target)
    assert [rest for word, rest in instructions if word == "USER"] == ["10001:10001"]
    assert instructions.index(("USER", "10001:10001")) > max(
        i for i, (word, _) in enumerate(instructions) if word in ("RUN", "COPY")
    )
    assert sum(word == "HEALTHCHECK" for word, _ in instructions) == 1
    (labels,) = [rest for word, rest in instructions if word == "LABEL"]
    assert 'org.opencontainers.image.revision="${COMMIT}"' in labels


def test_every_base_can_be_pinned_by_digest() -> None:
    bases = {base for base, _ in stages().values() if base not in stages()}
    assert bases == {"${PYTHON_BASE}"} and re.search(r"^ARG PYTHON_BASE=python:\d+\.\d+\.\d+-", TEXT, re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_compilers_caches_and_pip_stay_behind(target: str) -> None:
    copied = [rest for word, rest in whole(target) if word == "COPY"]
    assert copied and all(rest.startswith(f"--from=packages-{target} ") for rest in copied)
    assert not any("pip install" in rest for _, rest in whole(target))


def test_only_named_files_enter_the_build() -> None:
    allowed = (REPOSITORY / ".dockerignore").read_text().split()
    assert allowed[0] == "**"
    entries = {line.lstrip("!").split("/")[0] for line in allowed if line.startswith("!")}
    assert entries & {"data", ".omnimri", ".git", "tests", ".venv"} == set()
    assert {"components", "flows", "model_core", "kernels", "profiles", "constraints.txt", "pyproject.toml"} <= entries


def test_user_and_group_are_those_of_the_pods() -> None:
    from components.launching.kubernetes.manifests import USER

    assert f"useradd --uid {USER} --gid {USER} " in TEXT
