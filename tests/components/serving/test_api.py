"""The interface behind the page: the same limits and answers as the command line, nothing of a patient beside the images."""

from __future__ import annotations

import io
import json
import logging
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from components.errors import BadInput
from components.inference import save
from components.inference.untrusted_input import Limits
from components.serving.guards import required_token
from components.serving.kept import Kept, NotKept
from components.serving.samples import generate_sample
from components.serving.uploads import UploadFolder
from tests.helpers.malformed import LIES, nifti
from tests.helpers.served_model import Tiny, small_study

QUESTION = "Segment the white matter."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def client(tiny: Tiny) -> Iterator[TestClient]:
    with TestClient(tiny.app(), raise_server_exceptions=False) as client:
        yield client


def upload(client: TestClient, *files: tuple[str, bytes]) -> Any:
    return client.post("/api/images", files=[("files", file) for file in files])


def ask(client: TestClient, images: list[str], instruction: str) -> list[dict[str, Any]]:
    answer = client.post("/api/answers", json={"images": images, "instruction": instruction})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_an_answer_is_that_of_the_command_line_in_the_grid_of_the_file(client: TestClient, tiny: Tiny, tmp_path: Path) -> None:
    [image] = upload(client, ("t1.nii", nifti())).json()["images"]
    assert image["shape"] == [3, 16, 16] and image["plane"] == "axial"
    *events, last = ask(client, [image["id"]], QUESTION)
    assert {event["event"] for event in events} == {"progress"} and last["event"] == "answer" and last["task"] == "segmentation"
    (tmp_path / "t1.nii").write_bytes(nifti())
    save(tiny.model.predictor.predict(tmp_path / "t1.nii", QUESTION, on_text=lambda _: None), tmp_path / "out")
    mask = client.get(f"/api/answers/{last['id']}/mask.nii")
    assert mask.content == (tmp_path / "out" / "mask.nii").read_bytes()
    view = nib.Nifti1Image.from_bytes(client.get(f"/api/images/{image['id']}/view.nii").content)
    assert view.shape == (16, 16, 3) and np.allclose(np.sort(view.get_fdata().ravel()), np.arange(16 * 16 * 3))


def test_a_zip_of_a_dicom_study_gives_its_series_and_dicom_results(client: TestClient, tmp_path: Path) -> None:
    files = {f"Doe^Jane/{name}": content for name, content in small_study(tmp_path / "study").items()}
    images = upload(client, ("study.zip", zipped({**files, "Doe^Jane/readme.txt": b"text"}))).json()["images"]
    assert [image["description"].split(",")[0] for image in images] == [
        "axial T1-weighted brain MRI",
        "axial T2-weighted brain MRI",
    ]
    for question, file, modality in ((QUESTION, "segmentation.dcm", "SEG"), ("Report this image.", "report.dcm", "SR")):
        last = ask(client, [images[0]["id"]], question)[-1]
        written = dcmread(io.BytesIO(client.get(f"/api/answers/{last['id']}/{file}").content))
        assert written.Modality == modality
    assert "report.dcm" in ask(client, [image["id"] for image in images], "Report this image.")[-1]["files"]


def test_a_series_without_what_a_dicom_object_must_repeat_is_answered_and_told(client: TestClient, tmp_path: Path) -> None:
    files = {}
    for name, content in small_study(tmp_path / "study").items():
        if (header := dcmread(io.BytesIO(content))).Modality == "MR":
            del header.StudyDate, header.PatientID, header.StudyID, header.AccessionNumber, header.StudyTime, header.PatientName
            header.save_as(stream := io.BytesIO())
            files[name] = stream.getvalue()
    [image, _] = upload(client, ("study.zip", zipped(files))).json()["images"]
    last = ask(client, [image["id"]], QUESTION)[-1]
    assert "mask.nii" in last["files"] and "segmentation.dcm" not in last["files"]
    assert last["without_dicom"].startswith("the answer cannot be written as DICOM")


def test_a_report_streams_and_has_fields(client: TestClient) -> None:
    [image] = upload(client, ("t1.nii", nifti())).json()["images"]
    events = ask(client, [image["id"]], "Report this image.")
    assert "".join(event.get("text", "") for event in events[:-1]).startswith("Modality: MRI.")
    assert events[-1]["fields"]["modality"] == "MRI"


def test_undersampled_kspace_is_shown_as_the_model_receives_it(client: TestClient) -> None:
    [image] = client.post("/api/samples/brain-kspace").json()["images"]
    last = ask(client, [image["id"]], "Reconstruct this image.")[-1]
    assert ", k-space of 2 coils, " in image["description"] and "image.nii" in last["files"]


def test_kspace_of_several_coils_is_answered_as_on_the_command_line(client: TestClient, tiny: Tiny, tmp_path: Path) -> None:
    """The image from the page and the image from the command line are equal bit for bit."""
    [(name, content)] = generate_sample("brain-multicoil", None)
    (tmp_path / name).write_bytes(content.read())
    [image] = upload(client, (name, (tmp_path / name).read_bytes())).json()["images"]
    assert ", k-space of 8 coils, " in image["description"]
    assert client.post("/api/samples/brain-multicoil").json()["images"][0]["description"] == image["description"]
    last = ask(client, [image["id"]], "Reconstruct this image.")[-1]
    answer = client.get(f"/api/answers/{last['id']}/image.nii").content
    save(tiny.model.predictor.predict(tmp_path / name, "Reconstruct this image.", on_text=lambda _: None), tmp_path / "out")
    assert answer == (tmp_path / "out" / "image.nii").read_bytes()


@pytest.mark.parametrize("name", sorted(LIES))
def test_files_with_false_headers_are_rejected(client: TestClient, name: str) -> None:
    answer = upload(client, ("image", LIES[name]))
    assert answer.status_code == 400 and answer.json()["error"]["what"], answer.text
    assert "root:" not in answer.text


def _encrypted() -> bytes:
    content = bytearray(zipped({"a.nii": nifti()}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(signature) + offset
        struct.pack_into("<H", content, place, 1)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped({"zeros.nii": bytes(2**21)}), "the upload is too large"),
        (zipped({f"{number}.txt": b"" for number in range(40)}), "too many files"),
        (_encrypted(), "cannot be unpacked"),
        (zipped({"a.nii": nifti()})[:-30], "no image"),
        (zipped({"inner.zip": zipped({"a.nii": nifti()})}), "no image"),
        (zipped({}), "no image"),
    ],
    ids=["bomb", "many", "encrypted", "cut", "nested", "empty"],
)
def test_archives_are_unpacked_within_limits(tiny: Tiny, content: bytes, reason: str) -> None:
    with TestClient(tiny.app(Limits(unpacked_bytes=2**20, files=30))) as client:
        answer = upload(client, ("a.zip", content))
    assert answer.status_code == 400 and reason in answer.json()["error"]["what"]
    assert not list((tiny.root / f"kept-{tiny.apps}").iterdir())


def test_names_of_files_are_neither_kept_nor_logged_nor_sent_back(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    files = {"../../Doe^Jane_T1w.nii": nifti(), "/etc/Doe_T1w.json": b'{"PatientName": "Doe"}', "Doe.nii.gz": b"\x1f\x8b broken"}
    with TestClient(tiny.app(), raise_server_exceptions=False) as client:
        answer = upload(client, ("Doe.zip", zipped(files)), ("Doe^John.txt", b"text"))
        refused = upload(client, ("Doe.nii", b"Doe"))
    assert answer.status_code == 200 and refused.status_code == 400
    kept = [str(path.relative_to(tiny.root)) for path in (tiny.root / f"kept-{tiny.apps}").rglob("*")]
    texts = [answer.text, refused.text, *kept, *(record.getMessage() for record in caplog.records)]
    assert kept and not [text for text in texts if "Doe" in text]
    assert answer.json()["images"][0]["description"].startswith("axial T1-weighted")  # the suffix of the name


def test_a_question_out_of_scope_and_unknown_images_are_refused_before_they_wait(client: TestClient) -> None:
    [image] = upload(client, ("t1.nii", nifti())).json()["images"]
    for images, question, status in (
        ([image["id"]], "Segment the meniscus.", 400),
        ([image["id"]], "", 400),
        ([image["id"]], "x" * 3000, 400),
        (["unknown"], QUESTION, 404),
        ([], QUESTION, 422),
    ):
        answer = client.post("/api/answers", json={"images": images, "instruction": question})
        assert answer.status_code == status and answer.json()["error"]["what"], answer.text


def test_uploads_are_removed_on_request_with_time_and_beyond_a_size(tmp_path: Path) -> None:
    now = 0.0
    kept = Kept(tmp_path, Limits(kept_seconds=60, kept_bytes=250), clock=lambda: now)

    def add(size: int) -> tuple[str, Path]:
        folder = kept.create_folder()
        (folder / "file").write_bytes(bytes(size))
        [key] = kept.add(["content"], folder)
        return key, folder

    (first, first_folder), now = add(100), 10.0
    (second, second_folder), now = add(100), 20.0
    assert kept.get(first, str) == "content"  # used again: the second one is older now
    third, _ = add(100)
    assert not second_folder.exists() and first_folder.exists()
    with pytest.raises(NotKept):
        kept.get(second, str)
    kept.remove(third)
    now = 100.0
    add(1)
    assert not first_folder.exists() and len(list(tmp_path.iterdir())) == 1


def _wait_until_empty(folder: Path) -> None:
    end = time.monotonic() + 30
    while any(folder.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(folder.iterdir())


def test_old_uploads_are_removed_while_nobody_asks_anything(tiny: Tiny) -> None:
    app = tiny.app(Limits(kept_seconds=0.2))
    with TestClient(app) as client:
        upload(client, ("t1.nii", nifti()))
        _wait_until_empty(tiny.root / f"kept-{tiny.apps}")


def test_an_upload_that_takes_too_long_leaves_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has its error; the worker goes on reading, and then has images that nobody can name."""
    read, refused = UploadFolder.images, Event()

    def slow(self: UploadFolder) -> Any:
        assert refused.wait(30)
        return read(self)

    monkeypatch.setattr(UploadFolder, "images", slow)
    with TestClient(tiny.app(Limits(seconds=0.1)), raise_server_exceptions=False) as client:
        assert upload(client, ("t1.nii", nifti())).status_code == 504
        folder = tiny.root / f"kept-{tiny.apps}"
        assert any(folder.iterdir())
        refused.set()
        _wait_until_empty(folder)


@pytest.mark.parametrize("sidecars", [("a", "b"), ("b",)])
def test_files_of_one_name_in_several_folders_keep_their_own_sidecars(client: TestClient, sidecars: tuple[str, ...]) -> None:
    names = {"a": "T1-weighted", "b": "T2-weighted"}
    files = {f"{folder}/image.nii": nifti() for folder in names}
    files |= {f"{folder}/image.json": json.dumps({"Sequence": names[folder]}).encode() for folder in sidecars}
    images = upload(client, ("study.zip", zipped(files))).json()["images"]
    stated = [next((name for name in names.values() if name in image["description"]), None) for image in images]
    assert stated == [name if folder in sidecars else None for folder, name in names.items()]


def test_a_removed_image_is_gone(client: TestClient) -> None:
    [image] = upload(client, ("t1.nii", nifti())).json()["images"]
    assert client.delete(f"/api/images/{image['id']}").status_code == 204
    assert client.get(f"/api/images/{image['id']}/view.nii").status_code == 404


def test_a_token_guards_everything_but_the_empty_page(tiny: Tiny) -> None:
    with TestClient(tiny.app(token="secret")) as client:
        guarded = ("/api/model", "/openapi.json", "/api/images/x/view.nii", "/invocations", "/nowhere")
        assert {client.get(path).status_code for path in guarded} == {401}
        assert client.get("/api/model", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/model", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert {client.get(path).status_code for path in ("/", "/page/page.js", "/health", "/ping")} == {200}


def test_other_names_and_pages_of_other_sites_are_refused(tiny: Tiny) -> None:
    with TestClient(tiny.app(hosts=("localhost", "127.0.0.1")), base_url="http://localhost:5001") as client:
        assert client.get("/api/model").status_code == 200
        assert client.get("/api/model", headers={"Host": "attacker.example"}).status_code == 421
        assert client.post("/api/samples/brain-nifti", headers={"Origin": "http://attacker.example"}).status_code == 403
        assert client.get("/api/model", headers={"Origin": "http://localhost:5001"}).status_code == 200


def test_a_server_beyond_this_machine_needs_a_token_or_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNIMRI_TOKEN", raising=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert required_token(host, is_forced=False) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "omnimri.example"):
        with pytest.raises(BadInput, match="OMNIMRI_TOKEN"):
            required_token(host, is_forced=False)
        assert required_token(host, is_forced=True) is None
    monkeypatch.setenv("OMNIMRI_TOKEN", "secret")
    assert required_token("0.0.0.0", is_forced=False) == "secret"


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/api/model", "/nowhere", "/openapi.json"])
def test_every_response_forbids_requests_to_others(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_the_files_of_the_page_name_no_other_server() -> None:
    from components.serving.app import PAGE

    assert {path.suffix for path in PAGE.iterdir()} == {".html", ".css", ".js"}
    assert not [path.name for path in PAGE.iterdir() if "://" in path.read_text()]


def check_requests(app: FastAPI, count: int) -> None:
    """Send requests that obey the schema and others that do not, to every route: each response is one that the schema describes.

    What a schema cannot state, that a file is an image, may be refused although the request obeys it.
    """
    operations = [operation.ok() for operation in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()]
    assert len(operations) == 10
    cases = st.one_of(operation.as_strategy(generation_mode=mode) for operation in operations for mode in GenerationMode)

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(cases)
    def check(case: Case) -> None:
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        if answer.status_code >= 400 and answer.status_code != 405:
            assert answer.json()["error"]["what"]

    check()


def test_requests_of_the_schema_are_answered_or_refused(tiny: Tiny) -> None:
    check_requests(tiny.app(), 150)


@pytest.mark.slow  # a thousand requests
def test_a_thousand_requests_leave_no_memory(tiny: Tiny) -> None:
    app = tiny.app()
    check_requests(app, 300)
    before = psutil.Process().memory_info().rss
    check_requests(app, 1000)
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


def test_a_full_disk_is_a_fault_of_the_server(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("components.serving.uploads.UploadFolder._write", full)
    for name, content in (("t1.nii", nifti()), ("study.zip", zipped({"t1.nii": nifti()}))):
        answer = upload(client, (name, content))
        assert answer.status_code == 500 and answer.json()["error"]["what"] == "the server failed"
