"""Time and memory of a diagnosis of a whole volume in one pass, beside the same slices one by one.

``OMP_NUM_THREADS=1 python -m benchmarks.volumes`` measures the demo preset with random weights on volumes of 96 x 96 pixels, 189 mm
deep: p(yes) from one pass over the volume, and p(yes) of every slice as :class:`components.tasks.diagnosis.Diagnosis` computes it.
``thin`` is the one pass without averaging thin slices (:data:`components.inference.study.THICK_MM`). Each case runs in a process of
its own, whose largest resident memory is that of the case. CPU time hardly depends on other load.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.harness import versions, write_rows
from components.inference import study as study_module
from components.inference.predictor import Predictor
from components.inference.question import Question
from components.inference.sliding_window import ResampledVolume
from components.inference.study import Study, StudyQuestion, StudySeries
from components.ingestion.volume import Acquisition, Volume
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.processing import Processor
from model_core.tokenization import special_ids, train_tokenizer

MATRIX, PIXEL_MM = 96, 2.25
SLICES, DEPTH_MM = (20, 60, 189), 189.0
QUESTION = "Is there a lesion in this brain MRI?"


def build_case(slices: int) -> tuple[Predictor, ResampledVolume]:
    """Return a model with random weights, and a volume of noise."""
    torch.manual_seed(0)
    processor = Processor(
        train_tokenizer([f"{QUESTION} yes, lesion. no, no lesion. axial T1-weighted MRI, 3.0 T, slices of mm."], 400)
    )
    config = OmniMRIConfig.from_preset("demo", len(processor.tokenizer), **special_ids(processor.tokenizer))
    predictor = Predictor(OmniMRIForConditionalGeneration(config).eval(), processor, MATRIX, PIXEL_MM)
    voxels = np.random.default_rng(0).random((slices, MATRIX, MATRIX), dtype=np.float32)
    affine = np.diag([DEPTH_MM / slices, PIXEL_MM, PIXEL_MM, 1.0])
    volume = Volume(voxels, affine, Acquisition(sequence="T1-weighted", plane="axial", field_strength_t=3.0))
    return predictor, ResampledVolume.from_volume(volume, MATRIX, PIXEL_MM)


def run_case(slices: int, way: str) -> dict[str, float]:
    """Return the shorter of two runs in CPU seconds of one thread, and the largest resident memory in MiB.

    Args:
        way: ``whole``, ``thin`` or ``slices``.
    """
    predictor, volume = build_case(slices)
    question = Question(volume, QUESTION)
    if way == "thin":
        study_module.THICK_MM = 0.0
    seconds = []
    with torch.no_grad():
        for _ in range(2):
            start = time.process_time()
            if way == "slices":
                predictor.yes_probabilities(question, volume.tiles(range(slices)), "diagnosis")
            else:
                StudyQuestion(Study(predictor, (StudySeries(volume),)), QUESTION).yes_probability()
            seconds.append(time.process_time() - start)
    return {"cpu_seconds": min(seconds), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measure and write ``volumes.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=2, metavar=("SLICES", "WAY"), help="measure one case in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(int(arguments.case[0]), arguments.case[1])))
        return
    rows = []
    for slices in SLICES:
        for way in ("whole", "thin", "slices"):
            command = [sys.executable, "-m", "benchmarks.volumes", "--case", str(slices), way]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"slices": slices, "way": way, **{name: round(value, 2) for name, value in measured.items()}})
            print(rows[-1])
    write_rows("volumes", rows, versions())


if __name__ == "__main__":
    main()
