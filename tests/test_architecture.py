"""The structure of the code: imports go one way only, without circles, and documentation is in plain terms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from components.provenance import REPOSITORY

PACKAGES = ("flows", "components", "model_core", "kernels")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
NOUN_FRAGMENT = re.compile(r"(What|Whether|Whose|Who|How|Why|Of|By|As) ")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path, modules: set[str]) -> set[str]:
    """Return the modules of ours that a module imports when it is loaded, without those that only types need."""
    names = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            submodules = {f"{statement.module}.{alias.name}" for alias in statement.names}
            names |= submodules & modules or {statement.module}
    return names & modules


def test_imports_follow_the_layers() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter], cwd=REPOSITORY, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {_module(path) for path in SOURCES}
    graph = {_module(path): _imports(path, modules) for path in SOURCES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)  # a circle raises CycleError and names it


def test_docstrings_are_sentences() -> None:
    """Docstrings say what a function does ("Return ..."), not a fragment such as "What ..." or "Whether ..."."""
    fragments = [
        f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}: {docstring[:60]}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and NOUN_FRAGMENT.match(docstring := ast.get_docstring(node) or "")
    ]
    assert fragments == []
