"""The house keeps its arrows: flows -> components -> model_core -> kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from components.provenance import REPOSITORY


def test_imports_go_one_way_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter], cwd=REPOSITORY, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
