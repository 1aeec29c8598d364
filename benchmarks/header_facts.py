"""Facts of the header in reports of whole volumes: sequence, plane and field strength of generated patients outside of any cohort.

``python -m benchmarks.header_facts MODEL --patients 100`` writes two sequences of each patient as NIfTI with sidecars, reads them
back, and asks for a report of each volume, once as it is and once with a header that states nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.harness import versions, write_rows
from components.curation.text.template import parse_paragraph
from components.inference import Predictor
from components.ingestion.study_reader import read_study
from components.ingestion.volume import Acquisition, Volume
from components.samples.anatomies.brain import BRAIN, GRID
from components.samples.phantom import generate_patient

SEED, DIFFICULTY = (911,), 0.5
FIELDS_T = (1.5, 3.0)
FACTS = {
    "sequence": "image_modality_sequence.sequence",
    "plane": "image_modality_sequence.plane",
    "field strength": "acquisition.field_strength",
}
QUESTION = "Generate a diagnostic report based on this MRI scan."


def read_volumes(patients: int, folder: Path) -> Iterator[tuple[dict[str, str], Volume]]:
    """Yield the volumes of generated patients with the facts that they were written with."""
    for number in range(patients):
        patient = generate_patient(BRAIN, number, GRID, SEED, DIFFICULTY)
        for index, protocol in enumerate(BRAIN.protocols):
            field_t = FIELDS_T[(number + index) % 2]
            path = folder / f"sub-{number}_{protocol.suffix}.nii"
            values = np.ascontiguousarray(patient.simulate_magnitude(protocol.sequence).transpose(2, 1, 0))
            nib.save(nib.Nifti1Image(values, GRID.affine[:, [2, 1, 0, 3]]), path)
            path.with_suffix(".json").write_text(json.dumps({"MagneticFieldStrength": field_t}))
            [source], _ = read_study([path])
            yield {"sequence": protocol.sequence, "plane": GRID.plane, "field strength": f"{field_t:.1f} T"}, source.volume


def main() -> None:
    """Measure and write ``header_facts.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model")
    parser.add_argument("--patients", type=int, default=100, help="two volumes each")
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.model)
    right: Counter[tuple[str, str]] = Counter()
    asked = 0
    with tempfile.TemporaryDirectory() as folder:
        for facts, volume in read_volumes(arguments.patients, Path(folder)):
            asked += 1
            silent = replace(volume, acquisition=Acquisition(anatomy=volume.acquisition.anatomy))
            for header, shown in (("with", volume), ("without", silent)):
                stated = parse_paragraph(predictor.predict_study([shown], QUESTION).text)
                right.update((header, name) for name, value in facts.items() if stated.get(FACTS[name]) == value)
    rows = [
        {"header": header, "fact": name, "right": right[header, name], "volumes": asked}
        for header in ("with", "without")
        for name in FACTS
    ]
    for row in rows:
        print(row)
    write_rows("header_facts", rows, versions())


if __name__ == "__main__":
    main()
