"""The documents hold no command that does not exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _commands(start: str) -> list[str]:
    """Lines of the pages' shell blocks that begin with a word."""
    lines = [line.strip() for page in PAGES for block in FENCE.findall(page.read_text()) for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(f"{start} ")})


@pytest.mark.parametrize("command", _commands("omnimri"))
def test_every_omnimri_command_and_option_exists(command: str) -> None:
    words = re.sub(r'"[^"]*"', "TEXT", command.partition("#")[0]).split()[1:]
    groups = {"models", "catalog", "data"}
    path = words[: 2 if words[0] in groups else 1]
    done = subprocess.run([sys.executable, "-m", "flows.cli", *path, "--help"], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", done.stdout), option


@pytest.mark.parametrize("command", _commands("make"))
def test_every_make_target_exists(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in command.partition("#")[0].replace("&&", " ").split():
        assert target == "make" or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_every_linked_file_is_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
