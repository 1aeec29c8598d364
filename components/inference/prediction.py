"""What comes out, and its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.files import atomic_file, write_json
from components.settings import TaskName


@dataclass(frozen=True)
class FoundBox:
    """A box on the input's own grid, half-open: slice, rows and columns of the (D, H, W) voxels."""

    label: str
    slice_index: int
    row0: int
    col0: int
    row1: int
    col1: int


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        task: which of the five the answer's form belongs to.
        text: the answer as written, without markers.
        slices: indices of the slices that were looked at.
        boxes: for detection.
        image: (D, H, W) float32, for reconstruction.
        mask: (D, H, W) uint8, for segmentation.
        uncertainty: (D, H, W) float32, deviation of the draws of every voxel, where several were made: in the image's units, or of
            the mask's probability.
        affine: (4, 4), index (d, h, w, 1) -> RAS+ mm, of image, mask and uncertainty.
        file_affine: (4, 4) of the NIfTI file that was asked about, whose voxels may run in another order; None = another format.
        preview: (M, M) of the middle slice as the model saw it.
    """

    task: TaskName
    text: str
    slices: tuple[int, ...]
    affine: NDArray[np.float64]
    preview: NDArray[np.float32]
    boxes: tuple[FoundBox, ...] = ()
    image: NDArray[np.float32] | None = None
    mask: NDArray[np.uint8] | None = None
    uncertainty: NDArray[np.float32] | None = None
    file_affine: NDArray[np.float64] | None = None


def _save_nifti(path: Path, values: NDArray[Any], prediction: Prediction) -> Path:
    """(D, H, W) as NIfTI: on the very grid of the file that was asked about, or in the order (W, H, D), which viewers expect."""
    import nibabel as nib

    image = nib.Nifti1Image(values.transpose(2, 1, 0), prediction.affine[:, [2, 1, 0, 3]])
    if (like := prediction.file_affine) is not None:
        wanted = nib.orientations.io_orientation(like)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), wanted))
        if np.allclose(turned.affine, like, atol=1e-3):  # not where an axis is as near to one direction as to another
            image = nib.Nifti1Image(turned.dataobj, like)
    with atomic_file(path) as temporary:
        temporary.write_bytes(image.to_bytes())
    return path


def save(prediction: Prediction, out: Path) -> list[Path]:
    """Write ``answer.json`` and a picture and, where there are such, ``image.nii`` or ``mask.nii`` and ``uncertainty.nii``."""
    written = []
    for name in ("image", "mask", "uncertainty"):
        if (values := getattr(prediction, name)) is not None:
            written.append(_save_nifti(out / f"{name}.nii", values, prediction))
    written.append(_save_picture(prediction, out / "picture.png"))
    answer = {
        "task": prediction.task,
        "text": prediction.text,
        "slices": prediction.slices,
        "boxes": [asdict(box) for box in prediction.boxes],
    }
    write_json(out / "answer.json", answer)
    return [*written, out / "answer.json"]


def _save_picture(prediction: Prediction, path: Path) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    middle = prediction.slices[len(prediction.slices) // 2]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(prediction.preview, cmap="gray", vmin=0, vmax=1)
    left.set_title(f"input, slice {middle}", fontsize=9)
    if prediction.mask is not None:
        right.imshow(prediction.mask[middle], cmap="gray", vmin=0, vmax=1)
    elif prediction.image is not None:
        right.imshow(prediction.image[middle], cmap="gray")
    else:
        right.imshow(prediction.preview, cmap="gray", vmin=0, vmax=1)
        for box in (box for box in prediction.boxes if box.slice_index == middle):
            right.add_patch(
                Rectangle((box.col0, box.row0), box.col1 - box.col0, box.row1 - box.row0, fill=False, edgecolor="orange")
            )
    right.set_title(prediction.text[:60], fontsize=9)
    for axis in (left, right):
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    return path
