"""Tissue masks of a real T1 of a person who is in no training set: Colin27, the mean of 27 scans of one man.

    apt-get install mricron-data
    python -m benchmarks.real_brain MODEL --name study [--picture FILE] [--templates /usr/share/mricron/templates]

Nobody has drawn the tissues of this brain. Two references stand in for an expert: a mixture of three Gaussians on the intensities
inside the brain mask that comes with it (cerebrospinal fluid, gray and white matter; the first step of FAST), and the tissue maps
of the ICBM152 average, which is the mean of other people in the same space. The agreement of the two with each other says how far
either is to be trusted. The generated brains of training are deformations of that average, but Colin27 is not in it.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
from nilearn.image import resample_to_img
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from benchmarks.harness import versions, write_rows
from components.evaluation.metrics import dice
from components.inference import Predictor
from components.ingestion import read_path
from components.ingestion.volume import Volume

TISSUES = ("gray matter", "white matter")
Masks = dict[str, NDArray[np.bool_]]


def mixture_masks(volume: Volume, inside: NDArray[np.bool_]) -> Masks:
    """Return the tissues (D, H, W) as the brighter two of three Gaussians of the intensities inside the brain of a T1."""
    values = volume.voxels[inside][:, None]
    quantiles = np.quantile(values, (0.1, 0.4, 0.8))[:, None]
    component = GaussianMixture(3, means_init=quantiles, random_state=0).fit(values)
    order = np.argsort(component.means_[:, 0])
    labels = np.full(volume.voxels.shape, -1)
    labels[inside] = component.predict(values)
    return {tissue: labels == order[place] for place, tissue in enumerate(TISSUES, start=1)}


def atlas_masks(image: nib.Nifti1Image) -> Masks:
    """Return the more probable of both tissues of the ICBM152 average, where one of them has at least one half."""
    templates = (load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    maps = [resample_to_img(one, image, force_resample=True, copy_header=True).get_fdata() for one in templates]
    return {tissue: (one >= 0.5) & (one >= other) for tissue, one, other in zip(TISSUES, maps, maps[::-1], strict=True)}


def _row(image: str, pair: str, tissue: str, one: NDArray[np.bool_], other: NDArray[np.bool_], warned: str) -> dict[str, str]:
    return {"image": image, "pair": pair, "tissue": tissue, "dice": f"{dice(one, other):.3f}", "warned": warned}


def draw(volume: Volume, found: Masks, path: Path) -> None:
    """Draw five slices of a volume above the same slices with gray matter in red and white matter in blue."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="tight")
    for column, slice_index in enumerate(np.linspace(0.14, 0.72, 5) * len(volume.voxels)):
        for row in range(2):
            axes = figure.add_subplot(2, 5, 5 * row + column + 1)
            axes.imshow(volume.voxels[int(slice_index)], cmap="gray")
            axes.axis("off")
            if row:
                colors = np.zeros((*volume.voxels.shape[1:], 4))
                for tissue, color in zip(TISSUES, ((1, 0, 0, 0.5), (0, 0.5, 1, 0.5)), strict=True):
                    colors[found[tissue][int(slice_index)]] = color
                axes.imshow(colors)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Ask, compare and write ``real_brain_NAME.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a registered version, or models:/NAME@ALIAS")
    parser.add_argument("--name", required=True, help="of the model in the name of the results")
    parser.add_argument("--picture", type=Path, help="file for a picture of the masks of the whole head")
    parser.add_argument("--templates", type=Path, default=Path("/usr/share/mricron/templates"), help="folder of mricron-data")
    arguments = parser.parse_args()
    predictor, rows = Predictor.load(arguments.model), []
    brain = read_path(arguments.templates / "ch2bet.nii.gz")
    inside = brain.voxels > 0
    references = {
        "mixture of Gaussians": mixture_masks(brain, inside),
        "ICBM152 maps": atlas_masks(nib.Nifti1Image(brain.voxels, brain.affine)),
    }
    for name, file in (("whole head", "ch2.nii.gz"), ("brain alone", "ch2bet.nii.gz")):
        volume = read_path(arguments.templates / file)
        found: Masks = {}
        for tissue in TISSUES:
            prediction = predictor.predict(volume, f"Segment the {tissue} in this brain MRI.")
            assert prediction.mask is not None and prediction.familiarity is not None
            found[tissue], warned = prediction.mask > 0, prediction.familiarity.is_unlike
        if arguments.picture is not None and name == "whole head":
            draw(volume, found, arguments.picture)
        for other, masks in references.items():
            rows += [_row(name, f"model, {other}", tissue, found[tissue], masks[tissue], str(warned)) for tissue in TISSUES]
    for (one, masks), (other, others) in itertools.combinations(references.items(), 2):
        rows += [_row("brain alone", f"{one}, {other}", tissue, masks[tissue], others[tissue], "") for tissue in TISSUES]
    for row in rows:
        print(row)
    write_rows(f"real_brain_{arguments.name}", rows, versions())


if __name__ == "__main__":
    main()
