"""``omnimri catalog``: filters, faults with exit code 2, one JSON object."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.errors import BadInput
from flows.cli.main import app


def _run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def _json(*arguments: str, code: int = 0) -> dict:
    return json.loads(_run(*arguments, "--json", code=code))


def test_cards_are_listed_by_filters() -> None:
    cards = _json("catalog", "list", "--anatomy", "prostate", "--task", "detection", "--access", "open", "--format", "MetaImage")
    assert [card["id"] for card in cards["cards"]] == ["pi-cai"]
    assert "pi-cai" in _run("catalog", "list", "--anatomy", "prostate")


def test_a_card_is_shown_with_its_sources() -> None:
    assert _json("catalog", "show", "pi-cai")["sources"]["patients"]["checked"] is True
    assert "1476" in _run("catalog", "show", "pi-cai")


def test_the_summary_has_the_papers_figures_beside_ours() -> None:
    summary = _json("catalog", "summary", "--without", "uk-biobank")
    assert summary["totals"]["patients"]["paper"] == 47_917
    assert "does not name" in summary["meaning"]
    assert "does not name" in " ".join(_run("catalog", "summary").split())


def test_a_fault_ends_with_two_and_names_file_field_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_CARDS", str(tmp_path / "none"))
    (tmp_path / "mine.yaml").write_text("id: mine\nname: M\nrights: ours\nsynthetic: false\nformats: [NIfTI]\ndoi: none\n")
    (fault,) = _json("--cards", str(tmp_path), "catalog", "check", code=2)["faults"]
    assert (Path(fault["file"]).name, fault["field"]) == ("mine.yaml", "doi") and fault["remedy"]


def test_a_layout_is_checked_against_a_folder(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "la_003.nii.gz").touch()
    checked = _json("catalog", "check", "msd-heart", "--folder", str(tmp_path), code=2)
    assert {glob["pattern"]: glob["files"] for glob in checked["globs"]}["labelsTr/la_*.nii.gz"] == 1


@pytest.mark.parametrize(
    "arguments",
    [["catalog", "check", "--folder", "."], ["catalog", "list", "--task", "seg"], ["--cards", "nowhere", "catalog", "list"]],
)
def test_bad_usage_is_refused_with_a_remedy(arguments: list[str]) -> None:
    with pytest.raises(BadInput) as refused:
        _run(*arguments)
    assert refused.value.remedy
