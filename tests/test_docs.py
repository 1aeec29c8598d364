"""The documentation contains only commands, options, links and Python that exist."""

import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flows.cli.main import app
from tests.helpers.corpora import tiny_corpus
from tests.helpers.datasets import write_patient
from tests.helpers.trained import tiny_model

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/results/README.md")
PAGES = [*(REPOSITORY / name for name in ROOT_PAGES), *sorted((REPOSITORY / "docs").glob("*.md"))]
GENERATED = ("contributing.md", "changelog.md", "security.md", "benchmarks.md", "settings.md", "commands.md")
"""Pages that the site adds to ``docs/`` (docs/site/hooks.py)."""
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _commands(start: str) -> list[str]:
    """Return the lines of the shell blocks that begin with a word."""
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


def test_every_linked_file_exists() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            generated = page.parent.name == "docs" and link in GENERATED
            assert "://" in link or generated or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    corpus = tiny_corpus(tmp_path / "corpus")
    model = tiny_model(tmp_path / "model", corpus)
    write_patient(tmp_path / "source", 1)
    shutil.copy(next((tmp_path / "source").rglob("*_T1w.nii")), tmp_path / "t1.nii")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("t1.nii.gz", "t1.nii").replace("models:/omnimri@staging", str(model)), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_reference_of_settings_names_every_field_with_a_plain_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "site"))
    page = importlib.import_module("hooks").settings_page()
    assert "| `learning_rate` | `float` |" in page and "| `tolerances` | `dict[str, float]` |" in page
    assert not re.search(r"<function|Annotated|\| `[^`|]*components\.", page)
