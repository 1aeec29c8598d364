"""Results in a real Orthanc: under the study's own UIDs, visible through QIDO-RS, each once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from components.errors import BadInput, JobFailed
from components.home import Home
from components.inference.dicom_output import save_dicom
from components.inference.prediction import Prediction
from components.ingestion import read_path
from components.pacs.address import find_server
from components.pacs.archive import Archive, open_archive
from components.pacs.credentials import credentials_from_environment
from components.pacs.images import fetched_images
from components.pacs.results import Stored, store_results
from components.pacs.study_address import StudyAddress
from components.settings import PacsSettings
from tests.helpers.faulty_proxy import Answer, faulty_proxy
from tests.helpers.orthanc import Orthanc
from tests.helpers.studies import series_uid, study_uid, write_mr_series, write_study

PATIENCE_S = 5.0


def archive(url: str) -> Archive:
    return open_archive(find_server(url, PacsSettings(timeout_s=5)), credentials_from_environment)


def results(images: Path, out: Path) -> list[Path]:
    """Return a Segmentation and a Structured Report about a series."""
    volume = read_path(images)
    answer = Prediction("report", "One lesion.", (0,), np.asarray(volume.affine), np.zeros((8, 8), np.float32))
    mask = Prediction("segmentation", "", (0,), answer.affine, answer.preview, mask=(volume.voxels > 2000).astype(np.uint8))
    return [*save_dicom(mask, "Segment the lesion.", images, out), *save_dicom(answer, "Report.", images, out)]


@pytest.mark.parametrize("protocol", ["url", "dimse"])
def test_results_lie_beside_their_images_and_are_sent_once(orthanc: Orthanc, home: Home, tmp_path: Path, protocol: str) -> None:
    orthanc.add(write_study(tmp_path / "source", 1))
    server = archive(getattr(orthanc, protocol))
    with fetched_images(StudyAddress("x", study_uid(1), series_uid(1, "t1")), server, home, PATIENCE_S) as images:
        (folder,) = images.folders
        files = results(folder, tmp_path / "out")
        again = results(folder, tmp_path / "again")
    assert [dcmread(a).SOPInstanceUID for a in files] == [dcmread(b).SOPInstanceUID for b in again]
    assert store_results(files, server, home, PATIENCE_S) == Stored(2, 0)
    assert store_results(again, server, home, PATIENCE_S) == Stored(0, 2)
    found = orthanc.instances(StudyInstanceUID=study_uid(1), PatientID="MRN-00001")
    classes = [item["00080060"]["Value"][0] for item in orthanc.instances(StudyInstanceUID=study_uid(1), includefield="00080060")]
    assert len(found) == 8 and sorted(classes) == ["MR"] * 6 + ["SEG", "SR"]
    assert not folder.exists()


def test_a_lost_answer_does_not_store_a_second_object(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    files = write_mr_series(tmp_path / "source", 1)
    orthanc.add(*files)
    objects = results(files[0].parent, tmp_path / "out")
    posts: list[str] = []

    def lose(path: str, answer: Answer) -> Answer:
        if path == f"/dicom-web/studies/{study_uid(1)}":
            posts.append(path)
            return Answer(answer.status, answer.headers, answer.body, cut_after=0)
        return answer

    with faulty_proxy(orthanc.root, lose) as proxy:
        stored = store_results(objects, archive(proxy.url), home, PATIENCE_S)
    assert len(posts) == 1 and stored == Stored(0, 2)


def test_a_refusal_names_the_reason_and_no_patient(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    files = write_mr_series(tmp_path / "source", 1)
    orthanc.add(*files)
    objects = results(files[0].parent, tmp_path / "out")
    refusal = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [42752]}}]}}'

    def refuse(path: str, answer: Answer) -> Answer:
        return Answer(202, {"Content-Type": "application/dicom+json"}, refusal) if path.endswith(study_uid(1)) else answer

    with faulty_proxy(orthanc.root, refuse) as proxy, pytest.raises(JobFailed, match="A700") as failed:
        store_results(objects, archive(proxy.url), home, PATIENCE_S)
    assert "Secret" not in str(failed.value) and study_uid(1) not in str(failed.value)


def test_a_study_that_is_not_there_is_said_so(orthanc: Orthanc, home: Home) -> None:
    with (
        pytest.raises(BadInput, match="no MR series of this study"),
        fetched_images(StudyAddress("x", study_uid(7)), archive(orthanc.url), home, PATIENCE_S),
    ):
        pass
