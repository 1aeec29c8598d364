"""The page in a real browser: images, the five tasks, a study, refusals, cancellation, two users, keyboard and screen reader."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import CHROMIUM, Browser, Tab, chromium
from tests.helpers.served_model import Obedient, Tiny, running, small_image, small_study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")

ANSWERED = "document.getElementById('answer').dataset.state === 'done'"
SHOWN = "document.getElementById('viewers').dataset.state === 'ready'"
TASKS = {
    "reconstruction": ("Reconstruct this image.", "image.nii", 3),
    "segmentation": ("Segment the white matter.", "mask.nii", 2),
    "detection": ("Find every lesion.", "boxes.nii", 2),
    "diagnosis": ("Is there a lesion?", "answer.json", 1),
    "report": ("Report this image.", "answer.json", 1),
}
"""Task -> question, a file of its answer, layers in the viewer."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(tiny: Tiny) -> Iterator[str]:
    with running(tiny.app()) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image in NIfTI, and a study of two DICOM series in a zip archive."""
    folder = tmp_path_factory.mktemp("files")
    small_image(folder, "Doe^Jane")
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for name, content in small_study(folder / "study").items():
            archive.writestr(f"Doe^Jane/{name}", content)
    return folder


def opened(browser: Browser, address: str) -> Tab:
    tab = browser.tab()
    tab.open(f"{address}/")
    tab.wait("document.body.dataset.state === 'ready'")
    return tab


def upload(tab: Tab, *paths: Path) -> None:
    tab.choose_files("#files", *paths)
    tab.wait("document.getElementById('status').innerText.includes(' read.')")
    tab.wait(SHOWN)


def ask(tab: Tab, question: str) -> None:
    tab.fill("#instruction", question)
    tab.value("document.getElementById('answer').dataset.state = ''")
    tab.click("#ask")


@pytest.fixture(scope="module")
def tab(browser: Browser, address: str, files: Path) -> Tab:
    tab = opened(browser, address)
    upload(tab, *sorted(files.glob("Doe*")))
    return tab


def test_an_uploaded_image_is_shown_under_a_description_without_its_name(tab: Tab) -> None:
    assert "axial T1-weighted brain MRI, 8 slices of 12.0 mm" in tab.text("#images")
    assert "Doe" not in tab.value("document.documentElement.outerHTML")
    assert tab.text("#slice-number") == "5 of 8"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_answered_with_its_layers_and_downloads(tab: Tab, task: str) -> None:
    question, file, layers = TASKS[task]
    ask(tab, question)
    tab.wait(ANSWERED)
    tab.wait(SHOWN)
    assert tab.value("document.getElementById('answer').dataset.task") == task and tab.text("#status") == f"Done: {task}."
    assert tab.text("#answer-text") and file in tab.text("#downloads")
    assert int(tab.value("document.getElementById('viewers').dataset.volumes")) == layers
    assert tab.value("document.activeElement.id") == "answer-heading"
    if task == "diagnosis":
        assert "probability of yes: " in tab.text("#probability") and "Not calibrated" in tab.text("#statement")
    if task == "report":
        assert "modality" in tab.text("#fields") and "MRI" in tab.text("#fields")
    if task == "detection":
        tab.click("#boxes tbody tr:nth-child(3) button")
        assert tab.text("#slice-number").split(" ")[0] == tab.text("#boxes tbody tr:nth-child(3) td:nth-child(2)")


def test_a_question_out_of_scope_is_refused_in_words(tab: Tab) -> None:
    ask(tab, "Segment the meniscus in this knee MRI.")
    tab.wait("!document.getElementById('error').hidden")
    assert "not trained on: meniscus, knee (ask for" in tab.text("#error")
    assert not tab.value("document.getElementById('ask').disabled")


def test_a_second_image_makes_a_study_with_one_answer(browser: Browser, address: str, files: Path) -> None:
    tab = opened(browser, address)
    upload(tab, files / "study.zip")
    assert tab.text("#status") == "2 images read."
    ask(tab, "Report this image.")
    tab.wait(ANSWERED)
    assert "(a study of 2 images)" in tab.text("#asked")
    tab.click("#images li:nth-child(2) button:nth-of-type(2)")
    tab.wait("document.querySelectorAll('#images li').length === 1")
    ask(tab, "Segment the white matter.")
    tab.wait(ANSWERED)
    assert "segmentation.dcm" in tab.text("#downloads") and "a study" not in tab.text("#asked")


def test_a_cancelled_answer_ends_at_once_and_leaves_the_server_free(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Obedient, "slow", 0.5)
    for end in (lambda: tab.click("#cancel"), lambda: tab.press("Escape", 27)):
        ask(tab, "Report this image.")
        tab.wait("document.getElementById('answer-text').innerText.includes('Modality')")
        end()
        tab.wait("document.getElementById('status').innerText === 'Cancelled.'")
        assert tab.value("document.getElementById('cancel').disabled")
    monkeypatch.setattr(Obedient, "slow", 0.0)
    ask(tab, "Is there a lesion?")
    tab.wait(ANSWERED)


def test_two_users_at_once_get_their_own_answers(browser: Browser, address: str, files: Path, tab: Tab) -> None:
    other = opened(browser, address)
    assert other.text("#images") == ""
    upload(other, *sorted(files.glob("Doe*")))
    ask(tab, "Segment the white matter.")
    ask(other, "Is there a lesion?")
    for one, task in ((tab, "segmentation"), (other, "diagnosis")):
        one.wait(ANSWERED)
        assert one.value("document.getElementById('answer').dataset.task") == task


def test_everything_works_with_the_keyboard(tab: Tab) -> None:
    tab.value("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        tab.press("Tab", 9)
        reached.append(tab.value("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    expected = ["choose-files", "choose-folder", "sample", "use-sample", "show image 1", "remove image 1", "slice", "view"]
    expected += ["example", "instruction", "ask"]
    assert [name for name in reached if name in expected][: len(expected)] == expected
    tab.value("document.getElementById('instruction').focus()")
    tab.fill("#instruction", "Is there a lesion?")
    tab.value("document.getElementById('answer').dataset.state = ''")
    tab.press("Enter", 13, "\r")
    tab.wait(ANSWERED)
    tab.value("document.getElementById('slice').focus()")
    before = tab.text("#slice-number")
    tab.press("ArrowRight", 39)
    assert tab.text("#slice-number") != before


def test_a_screen_reader_finds_a_name_for_every_control(tab: Tab) -> None:
    nodes = tab.accessibility()
    controls = [(role, name) for role, name in nodes if role in ("button", "textbox", "combobox", "slider", "image", "progressbar")]
    assert len(controls) > 12 and all(name for _, name in controls)
    headings = [name for role, name in nodes if role == "heading"]
    assert [name[:2] for name in headings if name[0].isdigit()] == ["1.", "2.", "3."]
    assert {"status", "alert"} & {role for role, _ in nodes}


def test_a_wrong_file_is_an_error_in_words(browser: Browser, address: str, tmp_path: Path) -> None:
    tab = opened(browser, address)
    (tmp_path / "Doe.txt").write_text("no image")
    tab.choose_files("#files", tmp_path / "Doe.txt")
    tab.wait("!document.getElementById('error').hidden")
    assert "no image among the files" in tab.text("#error") and "Doe" not in tab.text("#error")


def test_no_request_leaves_the_machine_and_nothing_offends_the_policy(tab: Tab, address: str) -> None:
    schemes = (address, f"blob:{address}", "data:")
    assert tab.requests and all(request.startswith(schemes) for request in tab.requests)
    assert not [problem for problem in tab.problems if "400 (Bad Request)" not in problem]


def test_the_token_of_the_server_opens_the_page(browser: Browser, tiny: Tiny, files: Path) -> None:
    with running(tiny.app(token="a secret")) as address:
        tab = browser.tab()
        tab.open(f"{address}/")
        tab.wait("document.body.dataset.state === 'token'")
        for token, state in (("wrong", "token"), ("a secret", "ready")):
            tab.fill("#token", token)
            tab.click("#token-form button")
            shown = "This token is wrong" if state == "token" else "What can be asked"
            tab.wait(f"document.body.dataset.state === '{state}' && document.body.innerText.includes('{shown}')")
        upload(tab, *sorted(files.glob("Doe*")))
