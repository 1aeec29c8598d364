"""The served model answers what it can and says no to the rest: never a crash, never another file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Event, Thread

import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings

from components.inference.untrusted_input import Limits
from components.registries import TASKS
from tests.helpers.malformed import DAMAGED, LIES, MALFORMED, Request, asked, damaged, nifti
from tests.helpers.served_model import Tiny

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(tiny: Tiny) -> Iterator[TestClient]:
    with TestClient(tiny.app(), raise_server_exceptions=False) as client:
        yield client


def test_a_request_is_accepted_in_every_layout_of_the_protocol(client: TestClient) -> None:
    row = json.loads(asked(nifti()))["dataframe_records"][0]
    forms = [
        {"dataframe_records": [row]},
        {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}},
        {"inputs": row},
        {"instances": {key: [value] for key, value in row.items()}},
    ]
    answers = [client.post("/invocations", json=form) for form in forms]
    assert all(answer.status_code == 200 for answer in answers), answers[0].text
    [first] = answers[0].json()["predictions"]
    assert first["task"] in TASKS and set(first) == {"task", "text", "boxes", "file", "warning"}
    assert all(answer.json()["predictions"] == [first] for answer in answers)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(MALFORMED)
def test_invalid_requests_are_rejected_with_a_reason(client: TestClient, request_: Request) -> None:
    refused(client, request_)


@pytest.mark.parametrize("name", sorted(LIES))
def test_files_with_false_headers_are_rejected(client: TestClient, name: str) -> None:
    refused(client, Request(name, "application/json", asked(LIES[name])))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(DAMAGED)
@example(Request("a voxel of no size", "application/json", asked(damaged([(283, 0)]))))
def test_a_damaged_image_is_answered_or_rejected(client: TestClient, request_: Request) -> None:
    answer = client.post("/invocations", content=request_.body, headers=JSON)
    assert answer.status_code in (200, 400), answer.text


def refused(client: TestClient, request: Request) -> None:
    headers = {"content-type": request.content_type} if request.content_type else {}
    answer = client.post("/invocations", content=request.body, headers=headers)
    assert 400 <= answer.status_code < 500, (request.kind, answer.text)
    assert answer.json()["error"]["what"] and "root:" not in answer.text


def test_an_oversized_request_is_rejected_while_it_is_received(tiny: Tiny) -> None:
    with TestClient(tiny.app(Limits(request_bytes=1000))) as client:
        answer = client.post("/invocations", content=b" " * 2000, headers=JSON)
    assert answer.status_code == 413 and "1000 bytes" in answer.json()["error"]["remedy"]


def test_slow_answers_time_out_and_a_full_queue_rejects_requests(tiny: Tiny) -> None:
    going = Event()

    def slow(rows: pd.DataFrame) -> pd.DataFrame:
        going.wait(10)
        return rows

    with TestClient(tiny.app(Limits(seconds=0.5, queue=1), slow)) as client:
        found: list[int] = []
        first = Thread(target=lambda: found.append(client.post("/invocations", content=asked(nifti()), headers=JSON).status_code))
        first.start()
        first.join(5)
        assert found == [504]
        assert client.post("/invocations", content=asked(nifti()), headers=JSON).status_code == 429
        assert client.get("/health").status_code == 200
        going.set()


def test_the_exception_message_of_the_model_is_not_sent_to_clients(tiny: Tiny) -> None:
    def broken(rows: pd.DataFrame) -> pd.DataFrame:
        raise RuntimeError("Doe^Jane")

    with TestClient(tiny.app(predict=broken), raise_server_exceptions=False) as client:
        answer = client.post("/invocations", content=asked(nifti()), headers=JSON)
    assert answer.status_code == 500 and "Doe" not in answer.text


def test_the_pyfunc_checks_requests_itself_under_any_server(tiny: Tiny) -> None:
    from mlflow.exceptions import MlflowException

    for image in ("../../etc/passwd", ""):
        with pytest.raises(MlflowException) as refusal:
            tiny.pyfunc.predict(None, pd.DataFrame([{"image": image, "instruction": "Report."}]))
        assert refusal.value.get_http_status_code() == 400
