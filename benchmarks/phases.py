"""Run an ``omnimri`` command and record what its main thread spent its time on.

    python -m benchmarks.phases OUT WORD ...

``OUT`` receives one JSON object: seconds by phase. The time of a nested phase is not counted in the outer one.
Nothing is imported here that the command does not import itself.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PHASES = {
    "flows.reporting:start_prefect": "server",
    "flows.pipeline:ingest_datasets": "data",
    "flows.pipeline:curate_corpus": "data",
    "flows.pipeline:train_stages": "training",
    "flows.pipeline:evaluate_model": "evaluation",
    "flows.pipeline:register_and_stage": "registration",
    "components.inference.predictor:Predictor.load": "model",
    "components.inference.predictor:Predictor._read_questions": "data",
}
"""Phase of each call that is not the work itself; the rest is ``other``."""


class Clock:
    """Seconds of the main thread by phase."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._phases = ["other"]
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the last lap to the present phase."""
        now = time.perf_counter()
        self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time of the context for a phase. Other threads are not counted."""
        if threading.current_thread() is not threading.main_thread() or self._phases[-1] == phase:
            yield
            return
        self.lap()
        self._phases.append(phase)
        try:
            yield
        finally:
            self.lap()
            self._phases.pop()


class Watch:
    """Counts imports, and wraps the calls of :data:`PHASES` as soon as their modules are there."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self._pending = clock, dict(PHASES)

    def install(self) -> None:
        """Replace the import functions."""
        builtins.__import__ = self._counted(builtins.__import__)
        importlib.import_module = self._counted(importlib.import_module)

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def importing(name: str, *arguments: Any, **keywords: Any) -> Any:
            if name in sys.modules:  # a module's attribute may still be a module that is not imported: seldom, and then unseen
                return original(name, *arguments, **keywords)
            with self.clock.measure("imports"):
                module = original(name, *arguments, **keywords)
            self._wrap_present()
            return module

        return importing

    def _wrap_present(self) -> None:
        for target, phase in list(self._pending.items()):
            module, _, path = target.partition(":")
            *owners, name = path.split(".")
            owner: Any = sys.modules.get(module)
            for part in owners:
                owner = getattr(owner, part, None)
            if hasattr(owner, name):
                del self._pending[target]
                call = owner.__dict__[name]
                is_class_method = isinstance(call, classmethod)
                wrapped = self._measured(call.__func__ if is_class_method else call, phase)
                setattr(owner, name, classmethod(wrapped) if is_class_method else wrapped)

    def _measured(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def measured(*arguments: Any, **keywords: Any) -> Any:
            with self.clock.measure(phase):
                return call(*arguments, **keywords)

        return measured


def main(out: Path, words: list[str]) -> None:
    """Run the command and write the seconds of its phases."""
    clock = Clock()
    Watch(clock).install()
    sys.argv = ["omnimri", *words]
    try:
        with clock.measure("imports"):
            from flows.cli.main import main as command
        command()
    finally:
        clock.lap()
        out.write_text(json.dumps(clock.seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
