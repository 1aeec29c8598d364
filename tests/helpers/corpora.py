"""A tiny curated corpus, built within a second by the code of curation but without source files, cards or readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from components.curation.coil_data import CoilReference
from components.curation.corpus import STORE, Corpus
from components.curation.corpus_writer import write_corpus
from components.curation.curate_volume import CardFacts, CuratedVolume, curate_volume
from components.curation.store import VolumeStore
from components.ingestion.volume import Acquisition, SourceFile, SourceSeries, Volume
from components.provenance import digest
from components.samples.multicoil_files import coil_sensitivities
from components.settings import CurationSettings
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy

LABEL_MAP = {1: "cerebrospinal fluid", 2: "grey matter", 3: "white matter", 4: "lesion"}
SEQUENCES = {"T1-weighted": (0.2, 0.6, 1.0, 0.5), "T2-weighted": (1.0, 0.6, 0.4, 0.9)}
"""Sequence -> relative signal of the four structures."""
SLICES, EXTENT_MM = 8, 216.0


def card(name: str = "tiny-brain", coil_reference: CoilReference | None = None) -> CardFacts:
    facts = CardFacts(dataset_id=name, name="Tiny brains", anatomy="brain", synthetic=True, label_map=LABEL_MAP)
    return facts.model_copy(update={"coil_reference": coil_reference})


def with_coils(volume: Volume, coils: int) -> Volume:
    """Return a volume of one coil as measured by several."""
    assert volume.kspace is not None
    maps = coil_sensitivities(*volume.voxels.shape[1:], coils)
    images = ifft2c_numpy(volume.kspace) * maps
    return replace(volume, kspace=fft2c_numpy(images).astype(np.complex64))


def tiny_volume(seed: int, sequence: str = "T1-weighted", lesion: bool = False, kspace: bool = False, matrix: int = 32) -> Volume:
    """Return three nested ellipsoids, optionally with a lesion in white matter; axial, (8, matrix, matrix) voxels over 216 mm."""
    rng = np.random.default_rng(seed)
    d, h, w = np.meshgrid(np.linspace(-0.7, 0.7, SLICES), *[np.linspace(-1, 1, matrix)] * 2, indexing="ij")
    radius = np.sqrt(d**2 + (h / rng.uniform(0.75, 0.9)) ** 2 + (w / rng.uniform(0.65, 0.8)) ** 2)
    labels = np.select([radius < 0.6, radius < 0.85, radius < 1.0], [3, 2, 1], 0).astype(np.uint8)
    if lesion:
        center = rng.uniform(-0.2, 0.2, size=3)
        labels[((d - center[0]) ** 2 + (h - center[1]) ** 2 + (w - center[2]) ** 2) < rng.uniform(0.2, 0.3) ** 2] = 4
    signal = np.array([0.0, *SEQUENCES[sequence]])[labels] * 900 + rng.normal(0, 9, labels.shape)
    image = (np.abs(signal) * np.exp(1j * (h + w) * rng.uniform(-1, 1))).astype(np.complex64)
    step = EXTENT_MM / matrix
    affine = np.array([[0, 0, -step, 108], [0, -step, 0, 108], [12.0, 0, 0, -42], [0, 0, 0, 1]], dtype=np.float64)
    return Volume(
        voxels=np.abs(image).astype(np.float32),
        affine=affine,
        acquisition=Acquisition(
            sequence=sequence,
            plane="axial",
            anatomy="brain",
            repetition_time_ms=600.0 if sequence[:2] == "T1" else 4000.0,
            echo_time_ms=12.0 if sequence[:2] == "T1" else 90.0,
            flip_angle_deg=90.0,
            field_strength_t=3.0,
            vendor="Siemens",
            scanner="Prisma",
            sex="F" if seed % 2 else "M",
            age_years=40.0 + seed % 30,
        ),
        kspace=fft2c_numpy(image)[:, None] if kspace else None,
        labels=labels,
    )


def tiny_series(name: str, patient: str, reader: str = "nifti", dataset_id: str = "tiny-brain") -> SourceSeries:
    file = SourceFile(path=f"{dataset_id}/{patient}/{name}.nii.gz", md5=digest(name)[:32], size=1)
    return SourceSeries(dataset_id, patient, name, reader, files=(file,), md5=digest(dataset_id, name)[:32])


def tiny_settings(matrix: int = 32) -> CurationSettings:
    return CurationSettings(matrix=matrix, pixel_mm=EXTENT_MM / matrix, slices_per_volume=2, workers=1)


def tiny_corpus(folder: Path, patients: int = 6, matrix: int = 32, coils: int = 1) -> Corpus:
    """Curate two volumes per patient (T1; T2 with k-space), a lesion in every second patient; three splits from 4 patients on.

    With several coils, every third patient still has one.
    """
    settings, facts, store = tiny_settings(matrix), card(coil_reference="espirit"), VolumeStore(folder / STORE)
    curated: dict[str, CuratedVolume] = {}
    for number in range(patients):
        for sequence in SEQUENCES:
            series = tiny_series(f"{number:02d}-{sequence[:2]}", f"p{number:012x}", "kspace" if sequence[:2] == "T2" else "nifti")
            volume = tiny_volume(number, sequence, lesion=number % 2 == 0, kspace=sequence[:2] == "T2", matrix=matrix)
            if coils > 1 and number % 3 and volume.kspace is not None:
                volume = with_coils(volume, coils)
            volume_id = digest(series.series_id)[:32]
            curated[volume_id] = curate_volume(volume_id, volume, series, facts, settings, store)
    records = [volume.record for volume in curated.values()]
    write_corpus(folder, records, curated.__getitem__, {facts.dataset_id: facts}, settings, inputs="tiny")
    return Corpus.open(folder)
