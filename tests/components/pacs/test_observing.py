"""The watcher's view of an archive: a new series is a change, a silent server is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.pacs.credentials import credentials_from_environment
from components.pacs.observing import ServerObserver
from components.settings import Settings, load_settings
from tests.helpers.orthanc import Orthanc
from tests.helpers.studies import write_mr_series, write_study


@pytest.fixture
def settings(orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    card = {"id": "mine", "name": "M", "rights": "ours", "formats": ["DICOM"], "anatomy": "brain", "synthetic": False}
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "mine.yaml").write_text(yaml.safe_dump({**card, "pacs": {"server": orthanc.url}}))
    monkeypatch.setenv("OMNIMRI_CARDS", str(tmp_path / "cards"))
    return load_settings("demo", ["datasets=[{card: mine}]", "pacs.poll_s=10", "pacs.timeout_s=2"])


def test_a_change_counts_when_two_answers_agree(orthanc: Orthanc, settings: Settings, tmp_path: Path) -> None:
    clock, said = [0.0], list[str]()
    observer = ServerObserver(credentials_from_environment, said.append, lambda: clock[0])
    orthanc.add(write_study(tmp_path / "source", 1))
    (first,) = observer.observe(settings)
    assert (first.kind, first.name) == ("server", "mine")
    files = write_mr_series(tmp_path / "source", 2)
    orthanc.add(files[0])
    assert observer.observe(settings) == [first]  # not asked again so soon
    clock[0] += 10
    assert observer.observe(settings) == [first]
    orthanc.add(*files[1:])
    clock[0] += 10
    assert observer.observe(settings) == [first]  # it still grows
    clock[0] += 10
    (second,) = observer.observe(settings)
    assert second.state != first.state and said == []


def test_a_server_that_is_away_is_reported_once_and_changes_nothing(orthanc: Orthanc, settings: Settings, tmp_path: Path) -> None:
    clock, said = [0.0], list[str]()
    observer = ServerObserver(credentials_from_environment, said.append, lambda: clock[0])
    orthanc.add(write_study(tmp_path / "source", 1))
    first = observer.observe(settings)
    orthanc.stop()
    for _ in range(3):
        clock[0] += 10
        assert observer.observe(settings) == first
    orthanc.start()
    clock[0] += 10
    assert observer.observe(settings) == first
    assert [("cannot be observed" in text, "answers again" in text) for text in said] == [(True, False), (False, True)]
