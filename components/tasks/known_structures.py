"""Structures that a model knows by name, and how probable each is in every pixel.

The label maps of the training data are stored with the model. Structures compete only within a label map, as in training: a dataset
that labels lesions alone says nothing about tissues.

Shape letters: S structures, V tiles or slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.text.structure_names import lesion_kinds, lesion_name
from components.files import read_json
from components.model_files import PREPROCESSING
from components.tasks.kind_weights import default_weight

if TYPE_CHECKING:
    from components.curation.corpus import Corpus

FIND = "Find every {finding} in this image."
"""Instruction from whose state the decoder shows findings and structures: boxes, diagnoses and reports rest on the same pixels."""
FIND_IN = "Localize every {finding} in this {scan}."
"""The same about one series of a study, which the instruction must name."""
Probabilities = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shown:
    """Findings and structures that the decoder shows of an image, (H, W), or of a volume, (D, H, W).

    Attributes:
        mask: probability that a pixel belongs to a finding.
        structures: name -> probability of the structure.
    """

    mask: NDArray[np.float32]
    structures: Probabilities

    def __getitem__(self, index: int) -> Shown:
        """Return one slice of a volume."""
        return Shown(self.mask[index], {name: values[index] for name, values in self.structures.items()})

    @classmethod
    def stack(cls, slices: Sequence[Shown]) -> Shown:
        """Return the volume of slices with the same structures."""
        names = slices[0].structures
        return cls(
            np.stack([one.mask for one in slices]), {name: np.stack([one.structures[name] for one in slices]) for name in names}
        )


@dataclass(frozen=True)
class LabelMap:
    """The structures that a dataset distinguishes in one anatomy."""

    anatomy: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class KnownStructures:
    """The label maps of a model's training data.

    Attributes:
        kind_weights: kind of finding -> weight (:mod:`components.tasks.kind_weights`); a kind without one has the default.
    """

    label_maps: tuple[LabelMap, ...] = ()
    kind_weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    @classmethod
    def from_corpus(cls, corpus: Corpus) -> KnownStructures:
        """Return the label maps of the training volumes, without those whose structures are all in another one."""
        found: set[LabelMap] = set()
        for volume in corpus.volumes.values():
            if volume.split == "train" and volume.has_labels:
                named = (name.lower() for value, name in corpus.label_map(volume.dataset_id).items() if value)
                found.add(LabelMap((volume.anatomy or "").lower(), tuple(sorted(set(named)))))
        contained = {one for one in found for other in found if one.anatomy == other.anatomy and set(one.names) < set(other.names)}
        return cls(tuple(sorted(found - contained, key=lambda one: (one.anatomy, one.names))))

    @classmethod
    def of_model(cls, model_dir: Path) -> KnownStructures:
        """Read the label maps of a saved model; none, if the model was trained on none."""
        stored = read_json(model_dir / PREPROCESSING).get("label_maps", []) if (model_dir / PREPROCESSING).is_file() else []
        return cls(tuple(LabelMap(one["anatomy"], tuple(one["names"])) for one in stored))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the label maps for a JSON file."""
        return [{"anatomy": one.anatomy, "names": list(one.names)} for one in self.label_maps]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all structures, sorted."""
        return tuple(sorted({name for one in self.label_maps for name in one.names}))

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of finding -> names of its structures."""
        numbered = dict(enumerate(self.names, start=1))
        return {kind: [numbered[value] for value in values] for kind, values in lesion_kinds(numbered).items()}

    @property
    def find_instruction(self) -> str:
        """The instruction to find every finding, with the word that curation uses for those of these label maps."""
        return FIND.format(finding=self._finding)

    def find_instruction_in(self, scan: str) -> str:
        """Return :attr:`find_instruction` about the series that ``scan`` describes."""
        return FIND_IN.format(finding=self._finding, scan=scan)

    @property
    def _finding(self) -> str:
        return lesion_name(dict(enumerate(self.names, start=1)))

    def in_anatomy(self, *texts: str | None) -> KnownStructures:
        """Return the label maps of the anatomies that the first of the texts mentions which mentions any; all, if none does."""
        for text in texts:
            mentioned = (text or "").lower()
            if chosen := tuple(one for one in self.label_maps if one.anatomy and one.anatomy in mentioned):
                return replace(self, label_maps=chosen)
        return self

    def probabilities(self, names: Sequence[str], logits_VSHW: NDArray[np.float32]) -> Probabilities:
        """Return structure -> probability (V, H, W): its share within its label map, the mean over label maps that list it.

        Those of findings are weighed by kind: in every pixel, their sum stays.

        Args:
            names: the structures of the logits.
            logits_VSHW: of the named structures, relative to none of them.
        """
        sums: Probabilities = {}
        counts: dict[str, int] = {}
        for one in self.label_maps:
            competing = logits_VSHW[:, [names.index(name) for name in one.names]]
            highest = np.maximum(competing.max(1, keepdims=True), 0)
            exponentials = np.exp(competing - highest)
            shares = exponentials / (exponentials.sum(1, keepdims=True) + np.exp(-highest))
            for index, name in enumerate(one.names):
                sums[name] = sums.get(name, 0) + shares[:, index]
                counts[name] = counts.get(name, 0) + 1
        return self._weigh_findings({name: np.asarray(total / counts[name], np.float32) for name, total in sums.items()})

    def _weigh_findings(self, probabilities: Probabilities) -> Probabilities:
        weights = {
            name: self.kind_weights.get(kind, default_weight(kind)) for kind, members in self.kinds.items() for name in members
        }
        if len(set(weights.values())) < 2:
            return probabilities
        total = np.sum([probabilities[name] for name in weights], axis=0)
        weighed = {name: weight * probabilities[name] for name, weight in weights.items()}
        scale = total / np.maximum(np.sum(list(weighed.values()), axis=0), np.finfo(np.float32).tiny)
        return {name: np.asarray(weighed[name] * scale if name in weighed else p, np.float32) for name, p in probabilities.items()}


NONE_KNOWN = KnownStructures()
"""The known structures of a model that was trained without label maps: none."""
