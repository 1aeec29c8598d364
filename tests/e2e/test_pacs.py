"""The way of an archive's studies: fetched, de-identified, curated, predicted, and the answers back in their own studies."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from components.catalog import load_card
from components.catalog.layout import Layout
from components.curation import curate
from components.curation.corpus import Corpus
from components.home import Home
from components.inference import Predictor, save_dicom
from components.inference.prediction import Prediction
from components.ingestion import read_path
from components.pacs.address import find_server
from components.pacs.archive import open_archive
from components.pacs.credentials import credentials_from_environment
from components.pacs.images import fetched_images
from components.pacs.results import Stored, store_results
from components.pacs.source import PacsSource
from components.pacs.study_address import StudyAddress
from components.pacs.update import DatasetUpdate, update_from_archive
from components.samples.cohort import write_cohort
from components.settings import CurationSettings, PacsSettings
from tests.helpers.datasets import KEY
from tests.helpers.orthanc import needs_orthanc, running_orthanc
from tests.helpers.trained import tiny_model

PACS = PacsSettings(timeout_s=10, patience_s=20)
SEGMENTED = "Segment the white matter in this brain MRI."


def _mask(folder: Path) -> Prediction:
    """Return a mask about a series: a model of a few steps answers with words."""
    volume = read_path(folder)
    mask = (volume.voxels > np.percentile(volume.voxels, 80)).astype(np.uint8)
    return Prediction("segmentation", "", (0,), np.asarray(volume.affine), np.zeros((8, 8), np.float32), mask=mask)


@needs_orthanc
@pytest.mark.slow
def test_three_studies_in_and_their_segmentations_and_reports_back(tmp_path: Path) -> None:
    """Slow: generates, curates and predicts three patients."""
    sample = load_card("synthetic-brain-dicom")
    assert sample.generated is not None
    write_cohort(tmp_path / "brains", sample.generated.of_size(3))
    card = sample.model_copy(update={"id": "archive", "synthetic": False, "generated": None, "layout": Layout()})
    home = Home(tmp_path / "home", tmp_path / "data")
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        orthanc.add(tmp_path / "brains")
        server = find_server(orthanc.url, PACS)
        archive = open_archive(server, credentials_from_environment)
        report = update_from_archive(DatasetUpdate(card, home, KEY, 1, nullcontext), PacsSource(server, {}), archive, PACS)
        assert (report.patients, report.series, len(report.quarantined)) == (3, 6, 0)
        settings = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)
        assert curate(home.data, [card], home.curated, settings).volumes_total == 6
        predictor = Predictor.load(tiny_model(tmp_path / "model", Corpus.open(home.curated)))
        studies = sorted({one.study for one in archive.list_series({})})
        for number, study in enumerate(studies):
            with fetched_images(StudyAddress("x", study), archive, home, PACS.patience_s) as images:
                folder = images.folders[0]
                answer = predictor.predict(folder, "Write a report for this brain MRI.")
                files = save_dicom(answer, "Write a report.", folder, tmp_path / f"{number}")
                files += save_dicom(_mask(folder), SEGMENTED, folder, tmp_path / f"{number}-mask")
            assert store_results(files, archive, home, PACS.patience_s) == Stored(len(files), 0)
        for study in studies:
            series = [one.modality for one in archive.list_series({"StudyInstanceUID": study})]
            assert sorted(series) == ["MR", "MR", "SEG", "SEG", "SR"]  # one of the segmentations was there before
    assert [path.name for path in (home.root / "pacs").iterdir()] == ["ledger.sqlite"]
