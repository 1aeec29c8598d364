"""Predictions and their files."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.files import atomic_file, write_json
from components.settings import TaskName

if TYPE_CHECKING:
    from components.inference.familiarity import Familiarity


IMAGES = ("image", "mask", "uncertainty")
"""Results on the grid of the input."""
RESULTS = ("answer.json", "picture.png", *(f"{name}.nii" for name in IMAGES), "segmentation.dcm", "report.dcm", "measurements.dcm")
"""Names of all files that an answer may have."""


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
class FoundVolumeBox:
    """A box of a volume on the input's own grid, half-open: slices, rows and columns of the (D, H, W) voxels."""

    label: str
    slice0: int
    row0: int
    col0: int
    slice1: int
    row1: int
    col1: int

    @property
    def by_slice(self) -> tuple[FoundBox, ...]:
        """The box on each of its slices."""
        edges = (self.row0, self.col0, self.row1, self.col1)
        return tuple(FoundBox(self.label, index, *edges) for index in range(self.slice0, self.slice1))


@dataclass(frozen=True)
class Prediction:
    """The answer to an instruction about a volume.

    Attributes:
        task: task that the form of the answer belongs to.
        text: text of the answer, without markers.
        slices: indices of the slices that were processed.
        affine: (4, 4), index (d, h, w, 1) -> RAS+ mm, of image, mask and uncertainty.
        preview: (M, M) pixels of the middle slice as the model received it.
        boxes: boxes of a detection; of one about a whole volume, its boxes on each slice.
        volume_boxes: boxes of a detection about a whole volume.
        image: (D, H, W) float32, reconstructed image.
        mask: (D, H, W) uint8, mask of a segmentation.
        uncertainty: (D, H, W) float32, standard deviation over two or more samples, in units of the image or of the mask's
            probability.
        probability: of a diagnosis, the calibrated p(yes).
        familiarity: how far the image is from the training images; None = the model does not know its training images.
        file_affine: (4, 4) of the input's NIfTI file, whose axes may have another order; None for another format.
        dicom_series: of a study, the files of its DICOM series, those of the series that mask and boxes belong to first; empty if
            that series is no DICOM.
        preview_scale, preview_offset: pixel p of the preview is row or column ``scale * p + offset`` of the input.
    """

    task: TaskName
    text: str
    slices: tuple[int, ...]
    affine: NDArray[np.float64]
    preview: NDArray[np.float32]
    boxes: tuple[FoundBox, ...] = ()
    volume_boxes: tuple[FoundVolumeBox, ...] = ()
    image: NDArray[np.float32] | None = None
    mask: NDArray[np.uint8] | None = None
    uncertainty: NDArray[np.float32] | None = None
    file_affine: NDArray[np.float64] | None = None
    dicom_series: tuple[tuple[Path, ...], ...] = ()
    probability: float | None = None
    familiarity: Familiarity | None = None
    preview_scale: tuple[float, float] = (1.0, 1.0)
    preview_offset: tuple[float, float] = (0.0, 0.0)

    def box_on_preview(self, box: FoundBox) -> tuple[float, float, float, float]:
        """Return a box on the preview: the edges of its first row and column, its height and width.

        Pixel p reaches from p - 0.5 to p + 0.5.
        """
        (row_scale, column_scale), (row_offset, column_offset) = self.preview_scale, self.preview_offset
        row, column = (box.row0 - 0.5 - row_offset) / row_scale, (box.col0 - 0.5 - column_offset) / column_scale
        return row, column, (box.row1 - box.row0) / row_scale, (box.col1 - box.col0) / column_scale


def save(prediction: Prediction, out: Path) -> list[Path]:
    """Write ``answer.json`` and ``picture.png`` and, if the prediction has them, ``image.nii``, ``mask.nii``, ``uncertainty.nii``.

    They replace those of an earlier answer in the folder: a mask of another question must not lie beside an answer.

    Returns:
        The paths of the written files.
    """
    written = []
    if (out / RESULTS[0]).exists():
        for name in RESULTS:
            (out / name).unlink(missing_ok=True)
    for name in IMAGES:
        if (values := getattr(prediction, name)) is not None:
            written.append(_save_nifti(out / f"{name}.nii", values, prediction))
    written.append(_save_picture(prediction, out / "picture.png"))
    answer: dict[str, Any] = {
        "task": prediction.task,
        "text": prediction.text,
        "slices": prediction.slices,
        "boxes": [asdict(box) for box in prediction.boxes],
    }
    if prediction.volume_boxes:
        answer["volume_boxes"] = [asdict(box) for box in prediction.volume_boxes]
    if prediction.probability is not None:
        answer["probability"] = prediction.probability
    if prediction.familiarity is not None:
        answer["familiarity"] = {**asdict(prediction.familiarity), "warning": prediction.familiarity.warning}
    write_json(out / RESULTS[0], answer)
    return [*written, out / RESULTS[0]]


def nifti_bytes(values: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """Return (D, H, W) values as NIfTI in the order (W, H, D), which viewers expect."""
    import nibabel as nib

    content: bytes = nib.Nifti1Image(values.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]).to_bytes()
    return content


def _save_nifti(path: Path, values: NDArray[Any], prediction: Prediction) -> Path:
    """Write (D, H, W) values as NIfTI: on the grid of the input's file, or in the order (W, H, D), which viewers expect."""
    import nibabel as nib

    image = nib.Nifti1Image(values.transpose(2, 1, 0), prediction.affine[:, [2, 1, 0, 3]])
    if (file_affine := prediction.file_affine) is not None:
        orientation = nib.orientations.io_orientation(file_affine)
        transform = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), orientation)
        reoriented = image.as_reoriented(transform)
        # The orientation is ambiguous if an axis is equally close to two directions.
        if np.allclose(reoriented.affine, file_affine, atol=1e-3):
            image = nib.Nifti1Image(reoriented.dataobj, file_affine)
    with atomic_file(path) as temporary:
        temporary.write_bytes(image.to_bytes())
    return path


def _save_picture(prediction: Prediction, path: Path) -> Path:
    """Draw the input of the middle slice next to its mask, image or boxes."""
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
            row, column, height, width = prediction.box_on_preview(box)
            right.add_patch(Rectangle((column, row), width, height, fill=False, edgecolor="orange"))
    right.set_title(textwrap.fill(textwrap.shorten(prediction.text, 120), 60), fontsize=9)
    for axis in (left, right):
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    return path
