"""Two-phase update of a dataset's folder: write everything beside the last version, then replace it, or change nothing.

Every file that ingestion writes passes :meth:`Staging.write`: it is written under a temporary name in ``data/<id>/.incoming``, made
durable, read back with the reader that curation uses and compared with what the reader of the source gave. Only a file that
passes is listed in a manifest. :meth:`Staging.commit` moves them to their places (:mod:`components.file_switch`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.errors import MachineFault, OmniMRIError
from components.file_switch import INCOMING, FileSwitch
from components.files import atomic_file, sync, write_json
from components.ingestion.formats.base import Output, ReadBackError
from components.ingestion.manifest import MANIFEST, QUARANTINE
from components.ingestion.volume import SourceFile, SourceSeries
from components.machine_faults import program_error
from components.provenance import file_md5


class Staging:
    """New files of a dataset that are not part of a version yet.

    Attributes:
        root: folder of the dataset, ``data/<id>``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._switch = FileSwitch(root, MANIFEST)

    def path(self, target: str) -> Path:
        """Return where a target (relative to ``data/``) is staged."""
        return self.root.parent / staged_target(target)

    def write(self, target: str, output: Output) -> tuple[SourceFile, Any]:
        """Write one file, read it back, and stage it; return it with the result of :meth:`Output.check`.

        Raises:
            OmniMRIError: the reader refuses what was written, as it would refuse the source.
            MachineFault: the file cannot be written, or reads back differently.
        """
        path = self.path(target)
        with _as_program_error("writing", target), atomic_file(path) as temporary:
            output.write(temporary)
            sync(temporary)
            with _as_program_error("reading back", target):
                read_back = output.check(temporary)
            return SourceFile(target, file_md5(temporary), temporary.stat().st_size), read_back

    def commit(self, staged: Sequence[str], quarantine: Any, manifest: Any) -> None:
        """Move staged files to their places and switch the manifest; on an error, the last version stays.

        Args:
            staged: targets to be moved.
            quarantine, manifest: content of the two JSON files.
        """
        write_json(self._switch.incoming / QUARANTINE, quarantine)
        write_json(self._switch.incoming / MANIFEST, manifest)
        self._switch.commit([*(target.partition("/")[2] for target in staged), QUARANTINE])

    def recover(self) -> None:
        """Complete or undo an interrupted commit."""
        self._switch.recover()


@contextlib.contextmanager
def _as_program_error(doing: str, target: str) -> Iterator[None]:
    """Convert what no input can cause to a fault of the machine or a program."""
    try:
        yield
    except OmniMRIError:
        raise
    except ReadBackError as error:
        remedy = "nothing was changed; check memory and disk, and report it: the file differs from what was to be written"
        raise MachineFault(f"a written file reads back with {error}", where=target, remedy=remedy) from None
    except Exception as error:
        raise program_error(error, doing, target) from error


def staged_target(target: str) -> str:
    """Return the staged path of a target, both relative to ``data/``."""
    dataset_id, _, name = target.partition("/")
    return f"{dataset_id}/{INCOMING}/{name}"


def locate(series: SourceSeries, staged: Collection[str]) -> SourceSeries:
    """Return a series with the paths at which its files lie before the commit."""

    def located(files: tuple[SourceFile, ...]) -> tuple[SourceFile, ...]:
        return tuple(replace(file, path=staged_target(file.path)) if file.path in staged else file for file in files)

    return replace(series, files=located(series.files), labels=located(series.labels), annotations=located(series.annotations))
