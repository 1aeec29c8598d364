"""A tiny checkpoint and a small set of curated volumes, shared by the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from components.curation.corpus import STORE
from components.curation.curate_volume import CuratedVolume, curate_volume
from components.curation.store import VolumeStore
from components.curation.vlm import AnnotationReport, VlmAnnotator
from components.curation.vlm.annotate import VisionLanguageModel
from components.curation.vlm.local_model import LocalModel
from components.provenance import digest
from components.settings import VisualSettings
from tests.doubles.tiny_qwen import tiny_qwen
from tests.helpers.corpora import card, tiny_series, tiny_settings, tiny_volume

CHARACTERS = 12


@dataclass(frozen=True)
class Curated:
    """Curated volumes without labels (so that sections 2 and 3 are empty), their folder and their store."""

    root: Path
    volumes: list[CuratedVolume]
    store: VolumeStore

    def annotate(
        self,
        settings: VisualSettings,
        model: VisionLanguageModel | None = None,
        volumes: list[CuratedVolume] | None = None,
        root: Path | None = None,
    ) -> tuple[list[CuratedVolume], AnnotationReport]:
        """Return the volumes with the answers of the model."""
        volumes = self.volumes if volumes is None else volumes
        annotator = VlmAnnotator(self.store, root or self.root, settings, model)
        report = annotator.annotate(
            [volume.record for volume in volumes], {volume.record.volume_id: volume for volume in volumes}.__getitem__
        )
        return [annotator.add_answer(volume) for volume in volumes], report


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def local(checkpoint: Path) -> LocalModel:
    return LocalModel(VisualSettings(folder=checkpoint, field_characters=CHARACTERS))


@pytest.fixture
def curated(tmp_path: Path) -> Curated:
    settings, facts, store = tiny_settings(), card(), VolumeStore(tmp_path / STORE)
    volumes = []
    for number in range(6):
        series, volume = tiny_series(f"{number:02d}", f"p{number:012x}"), tiny_volume(number)
        bare = type(volume)(volume.voxels, volume.affine, volume.acquisition)
        volumes.append(curate_volume(digest(number)[:32], bare, series, facts, settings, store))
    return Curated(tmp_path, volumes, store)
