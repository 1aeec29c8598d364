"""Data of the page's 3-D viewer: one held-out volume with the model's mask and the true mask."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord
from components.evaluation.model_answers import AnswerGenerator, load_cases
from components.registries import TASKS
from model_core.targets import TARGET_MASK


@dataclass(frozen=True)
class Layer:
    """A volume of the viewer: NIfTI, gzip, base64, with the name of its NiiVue color map."""

    name: str
    base64: str
    colormap: str
    opacity: float


@dataclass(frozen=True)
class Viewer:
    """The layers of a volume, and the question about it."""

    question: str
    layers: tuple[Layer, ...]


def build_viewer(answers: AnswerGenerator, corpus: Corpus, selected: Mapping[str, Sequence[InstructionRecord]]) -> Viewer | None:
    """Answer the first selected question with a mask about every slice of its volume; None if no question has a mask."""
    with_masks = [records[0] for task, records in selected.items() if TASKS[task].target_kind == TARGET_MASK and records]
    if not with_masks:
        return None
    first = with_masks[0]
    volume = corpus.volumes[first.volume_id]
    records = [
        first.model_copy(update={"slice_index": index, "sample_id": f"{first.sample_id}-{index}"}) for index in range(volume.slices)
    ]
    cases = load_cases(corpus, records)
    probability = np.stack(answers.images(cases, steps=1, samples=1))
    truth = np.stack([case.target.image for case in cases])
    image = np.stack([case.image for case in cases])
    affine = np.asarray(volume.affine).reshape(4, 4)

    def layer(name: str, values: NDArray[Any], colormap: str, opacity: float) -> Layer:
        return Layer(f"{name}.nii.gz", _encode_nifti(values, affine), colormap, opacity)

    gray = np.clip(image / max(float(image.max()), 1e-6), 0, 1) * 255
    truth_layer, model_layer = layer("truth", truth > 0.5, "green", 0.35), layer("model", probability > 0.5, "red", 0.35)
    return Viewer(first.instruction, (layer("image", gray, "gray", 1.0), truth_layer, model_layer))


def _encode_nifti(values_DHW: NDArray[Any], affine: NDArray[np.float64]) -> str:
    import nibabel as nib

    image = nib.Nifti1Image(values_DHW.astype(np.uint8).transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
