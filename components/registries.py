"""The things that OmniMRI can be given more of: formats, tasks and training stages. Each is one file and one entry here.

An entry is a name and where its object lies (``"module:attribute"``). Names are known without an import, so that settings and
``--help`` stay fast; an object is imported when it is first looked up. Code outside of this repository registers its own entries
from a plugin: a module that ``OMNIMRI_PLUGINS`` names (several: separated by commas), imported by every process of a run::

    from components.registries import TASKS

    TASKS.add("bone_age", "my_lab.bone_age:TASK")
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

from components.errors import BadInput

if TYPE_CHECKING:
    from components.ingestion.formats.base import Format
    from components.tasks.base import Task
    from components.training.stages.base import Stage

PLUGINS = "OMNIMRI_PLUGINS"
T = TypeVar("T")
_imported: dict[str, ModuleType] = {}


def plugins() -> tuple[ModuleType, ...]:
    """Import the plugin modules that the environment names, each once, and return them in that order.

    Raises:
        BadInput: a module cannot be found or imported.
    """
    names = [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    for name in names:
        if name not in _imported:
            try:
                _imported[name] = import_module(name)
            except ModuleNotFoundError as error:
                remedy = "install the package that contains it, or put its folder on PYTHONPATH"
                raise BadInput(f"no such module: {error.name}", where=f"{PLUGINS}={name}", remedy=remedy) from error
            except Exception as error:
                fault = f"the plugin cannot be imported: {type(error).__name__}: {error}"
                raise BadInput(fault, where=f"{PLUGINS}={name}", remedy="correct the module") from error
    return tuple(_imported[name] for name in names)


def plugin_packages() -> list[Path]:
    """Return the top-level packages (folders or files) of the plugins: a registered model is stored with them."""
    packages: dict[Path, None] = {}
    for module in plugins():
        top = sys.modules[module.__name__.partition(".")[0]]
        packages[Path(top.__file__) if top.__file__ and not hasattr(top, "__path__") else Path(next(iter(top.__path__)))] = None
    return list(packages)


def plugin_sources() -> list[Path]:
    """Return the files of the plugins: they decide results as the code of this repository does, and count in its digests."""
    return [Path(module.__file__) for module in plugins() if module.__file__]


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name, imported at first use, in the order of their registration.

    Attributes:
        built_in: names that ship with OmniMRI; the other ones come from plugins.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self.built_in = tuple(entries)
        self._entries = dict(entries)
        self._objects: dict[str, T] = {}

    def add(self, name: str, location: str) -> None:
        """Register an object: its name, and ``"module:attribute"``.

        Raises:
            BadInput: the name is taken by another object.
        """
        if self._entries.setdefault(name, location) != location:
            raise BadInput(f"two {self.kind}s are called {name}", where=location, remedy="rename one of them")

    def __getitem__(self, name: str) -> T:
        if name not in self._objects:
            if name not in self._names():
                raise KeyError(name)
            module, _, attribute = self._entries[name].partition(":")
            try:
                self._objects[name] = getattr(import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                if name in self.built_in:
                    raise
                remedy = f"correct the location that the plugin gives to {self.kind.upper()}S.add"
                raise BadInput(f"the {self.kind} cannot be loaded: {error}", where=self._entries[name], remedy=remedy) from error
        return self._objects[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names()  # without importing the object

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> dict[str, str]:
        plugins()
        return self._entries


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "dicom": "components.ingestion.formats.dicom.format:FORMAT",
        "nifti": "components.ingestion.formats.nifti:FORMAT",
        "metaimage": "components.ingestion.formats.metaimage:FORMAT",
        "numpy_array": "components.ingestion.formats.numpy_array:FORMAT",
        "ismrmrd": "components.ingestion.formats.ismrmrd:FORMAT",
        "fastmri": "components.ingestion.formats.fastmri:FORMAT",
    },
)
"""Image formats (:class:`components.ingestion.formats.base.Format`), in the order in which they are asked to recognize a file."""
TASKS: Registry[Task] = Registry(
    "task",
    {
        "reconstruction": "components.tasks.reconstruction:TASK",
        "segmentation": "components.tasks.segmentation:TASK",
        "detection": "components.tasks.detection:TASK",
        "diagnosis": "components.tasks.diagnosis:TASK",
        "report": "components.tasks.report:TASK",
    },
)
"""Tasks of instruction tuning, in the order in which an answer is tried against them; the report accepts every other answer."""
STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "vision_pretraining": "components.training.stages.vision_pretraining:STAGE",
        "alignment": "components.training.stages.alignment:STAGE",
        "multimodal_pretraining": "components.training.stages.multimodal_pretraining:STAGE",
        "instruction_tuning": "components.training.stages.instruction_tuning:STAGE",
    },
)
"""Training stages in the order in which they are trained, each starting from the weights of the previous one."""
