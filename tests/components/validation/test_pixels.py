"""Defects in pixels and masks: each volume is curated like any other, and its rule must report it from the recorded values.

Not detected, and therefore not planted: an image that is flipped under its own mask, if the two halves under the mask are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.curation.corpus import STORE, Corpus
from components.curation.corpus_writer import write_corpus
from components.curation.curate_volume import CuratedVolume, curate_volume
from components.curation.measure.volume_facts import correlate_neighbors
from components.curation.store import VolumeStore
from components.ingestion.volume import Volume
from components.provenance import digest
from components.validation.dataframes import build_dataframes
from components.validation.validation_gate import run_rules
from tests.helpers.corpora import SEQUENCES, card, tiny_series, tiny_settings, tiny_volume
from tests.helpers.defects import PIXEL_DEFECTS, PixelDefect

VALID_PATIENTS = 6


def _with_lesion_on_one_side(seed: int, sequence: str) -> Volume:
    """Return a volume whose lesion is clearly on one side."""
    volume = tiny_volume(seed, sequence, lesion=False)
    assert volume.labels is not None
    labels, voxels = volume.labels.copy(), volume.voxels.copy()
    labels[3:5, 14:18, 9:13] = 4
    voxels[labels == 4] = 900 * SEQUENCES[sequence][3]
    return replace(volume, labels=labels, voxels=voxels)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, set[str]], dict[str, str]]]:
    """(rule -> reported volumes, defect -> volume in which it was planted); every patient has a T1 and a T2."""
    root: Path = tmp_path_factory.mktemp("pixels")
    store, settings, facts = VolumeStore(root / STORE), tiny_settings(), card()
    curated: dict[str, CuratedVolume] = {}
    planted: dict[str, str] = {}
    patients: list[PixelDefect | None] = [*PIXEL_DEFECTS, *[None] * VALID_PATIENTS]
    for number, defect in enumerate(patients):
        for sequence in SEQUENCES:
            volume = _with_lesion_on_one_side(number, sequence)
            name = digest(number, sequence)[:32]
            if defect is not None and sequence == "T1-weighted":
                volume, planted[defect.name] = defect.plant(volume), name
            series = tiny_series(f"{number}-{sequence}", f"p{number:012x}")
            curated[name] = curate_volume(name, volume, series, facts, settings, store)
    records = [volume.record for volume in curated.values()]
    write_corpus(root, records, curated.__getitem__, {facts.dataset_id: facts}, settings, inputs="pixels")
    tables = {"volumes": build_dataframes(Corpus.open(root))["volumes"]}
    report, quarantine = run_rules("pixels", tables, root / "gx")
    assert not report.passed
    rows: dict[str, set[str]] = {}
    for volume_id, names in quarantine["volumes"].items():
        for name in names:
            rows.setdefault(name, set()).add(volume_id)
    yield rows, planted


@pytest.mark.parametrize("defect", PIXEL_DEFECTS, ids=lambda defect: defect.name.replace(" ", "-"))
def test_every_defect_in_the_pixels_is_reported_by_its_rule(
    defect: PixelDefect, reported: tuple[dict[str, set[str]], dict[str, str]]
) -> None:
    rows, planted = reported
    assert planted[defect.name] in rows.get(defect.rule, set())


def test_no_rule_reports_a_volume_without_a_planted_defect(reported: tuple[dict[str, set[str]], dict[str, str]]) -> None:
    """Except for the other sequence of a patient with contradicting sides, because either of the two may be wrong."""
    rows, planted = reported
    other = digest(next(number for number, defect in enumerate(PIXEL_DEFECTS) if "one sequence" in defect.name), "T2-weighted")[:32]
    assert set().union(*rows.values()) <= {*planted.values(), other}


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.3])
def test_a_noisy_image_is_not_reported_as_noise(sigma: float) -> None:
    """Down to a signal-to-noise ratio of about 3, the correlation is at least twice the limit of the rule."""
    rng = np.random.default_rng(0)
    image = tiny_volume(1, matrix=64).voxels / 900
    noisy = np.abs(image + sigma * (rng.normal(size=image.shape) + 1j * rng.normal(size=image.shape)))
    correlation = correlate_neighbors(noisy.astype(np.float32))
    assert correlation is not None and correlation > 0.3
