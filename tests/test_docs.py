"""The documents hold no command that does not exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flows.cli.main import app

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _commands(start: str) -> list[str]:
    """Lines of the pages' shell blocks that begin with a word."""
    lines = [line.strip() for page in PAGES for block in FENCE.findall(page.read_text()) for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(f"{start} ")})


@pytest.mark.parametrize("command", _commands("omnimri"))
def test_every_omnimri_command_and_option_exists(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    found: Any = get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]
    assert not hasattr(found, "commands"), f"no such command in this group: {words[:1]}"
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options


@pytest.mark.parametrize("command", _commands("make"))
def test_every_make_target_exists(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in command.partition("#")[0].replace("&&", " ").split():
        assert target == "make" or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_every_linked_file_is_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
