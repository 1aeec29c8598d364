"""Forty volumes that a model has never seen, twenty brains and twenty others: which ones are refused, marked, or answered as usual.

``python -m benchmarks.familiarity MODEL`` (the folder of a registered version, or ``models:/NAME@ALIAS``). The others are
knees, prostates, hearts and breasts of the generators, noise, and photographs saved as NIfTI. Each is asked about as a file
without a header (nothing but its voxels can tell), and as one whose header states its anatomy.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import skimage.data
import skimage.transform
from numpy.typing import NDArray

from benchmarks.harness import versions, write_rows
from components.inference import Predictor
from components.ingestion.volume import Acquisition, Volume
from components.samples.anatomies import ANATOMIES
from components.samples.anatomies.brain import BRAIN
from components.samples.phantom import generate_patient
from components.tasks.scope import OutOfScope

QUESTION = "Is there a lesion in this image?"
SEED = (2026, 11)
DIFFICULTY = 0.2
"""As in the cohort of the demo."""
BRAIN_VOLUMES, EACH, NOISE = 20, 3, 4
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coins")


def volume_of(voxels: NDArray[np.float32], affine: NDArray[np.float64], anatomy: str | None) -> Volume:
    """Return voxels (D, H, W) as a volume, scaled to a maximum of 1."""
    return Volume(voxels / voxels.max(), affine, Acquisition(anatomy=anatomy))


def unseen_volumes() -> Iterator[tuple[str, Volume]]:
    """Yield (group, volume); the header of a volume states the anatomy, if it has one."""
    for name in ("brain", "knee", "prostate", "heart", "breast"):
        anatomy = ANATOMIES[name]
        for number in range(BRAIN_VOLUMES if name == "brain" else EACH):
            patient = generate_patient(anatomy, number, anatomy.grid, SEED, DIFFICULTY)
            sequence = anatomy.protocols[number % len(anatomy.protocols)].sequence
            yield name, volume_of(patient.simulate_magnitude(sequence).astype(np.float32), anatomy.grid.affine, name)
    shape, affine = (BRAIN.grid.slices, BRAIN.grid.pixels, BRAIN.grid.pixels), BRAIN.grid.affine
    rng = np.random.default_rng(SEED)
    for _ in range(NOISE):
        yield "noise", volume_of(rng.rayleigh(1.0, shape).astype(np.float32), affine, None)
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        gray = photograph if photograph.ndim == 2 else photograph.mean(-1)
        image = skimage.transform.resize(gray.astype(np.float32), shape[1:], anti_aliasing=True)
        yield "photograph", volume_of(np.broadcast_to(image, shape).astype(np.float32), affine, None)


def outcome(predictor: Predictor, volume: Volume) -> str:
    """Return what a user sees: a refusal, an answer with the mark "unlike anything in training", or an answer."""
    try:
        prediction = predictor.predict(volume, QUESTION)
    except OutOfScope:
        return "refused"
    return "marked" if prediction.familiarity is not None and prediction.familiarity.is_unlike else "answered"


def main() -> None:
    """Ask and write ``familiarity.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a registered version, or models:/NAME@ALIAS")
    predictor = Predictor.load(parser.parse_args().model)
    seen: Counter[tuple[str, str, str]] = Counter()
    for group, volume in unseen_volumes():
        silent = replace(volume, acquisition=Acquisition())
        seen[group, "no header", outcome(predictor, silent)] += 1
        seen[group, "header states the anatomy", outcome(predictor, volume)] += 1
    groups = list(dict.fromkeys((group, header) for group, header, _ in seen))
    rows = [
        {"group": group, "header": header, **{kind: str(seen[group, header, kind]) for kind in ("answered", "marked", "refused")}}
        for group, header in groups
    ]
    for row in rows:
        print(row)
    write_rows("familiarity", rows, versions())


if __name__ == "__main__":
    main()
