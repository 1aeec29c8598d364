"""What the page's 3-D viewer shows: one held-out volume, with the model's mask and the truth over it."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord
from components.evaluation.answers import Answerer, load_cases


@dataclass(frozen=True)
class Layer:
    """A volume of the viewer: NIfTI, gzip, base64, with NiiVue's name of its colours."""

    name: str
    base64: str
    colours: str
    opacity: float


@dataclass(frozen=True)
class Viewer:
    """The volume, and what is asked about it."""

    question: str
    layers: tuple[Layer, ...]


def viewer(answerer: Answerer, corpus: Corpus, records: Sequence[InstructionRecord]) -> Viewer | None:
    """Ask the first of the segmentation questions about every slice of its volume; None where there is none."""
    if not records:
        return None
    first = records[0]
    volume = corpus.volumes[first.volume_id]
    asked = [
        first.model_copy(update={"slice_index": index, "sample_id": f"{first.sample_id}-{index}"}) for index in range(volume.slices)
    ]
    cases = load_cases(corpus, asked)
    probability = np.stack(answerer.images(cases, steps=1, samples=1))
    truth = np.stack([case.target.image for case in cases])
    image = np.stack([case.image for case in cases])
    affine = np.asarray(volume.affine).reshape(4, 4)

    def layer(name: str, values: NDArray[Any], colours: str, opacity: float) -> Layer:
        return Layer(f"{name}.nii.gz", _nifti(values, affine), colours, opacity)

    grey = np.clip(image / max(float(image.max()), 1e-6), 0, 1) * 255
    truth_layer, model_layer = layer("truth", truth > 0.5, "green", 0.35), layer("model", probability > 0.5, "red", 0.35)
    return Viewer(first.instruction, (layer("image", grey, "gray", 1.0), truth_layer, model_layer))


def _nifti(values_DHW: NDArray[Any], affine: NDArray[np.float64]) -> str:
    import nibabel as nib

    image = nib.Nifti1Image(values_DHW.astype(np.uint8).transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
