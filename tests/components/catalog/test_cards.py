"""A card says what it must, says where its figures are stated, and is refused with the field and the remedy where it does not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.catalog import Fault, list_cards, load_card
from components.catalog.cards import DatasetCard, Layout, filtered, parse_card
from components.errors import BadInput
from components.samples import SAMPLES

MINIMUM = {"id": "mine", "name": "M", "rights": "ours", "synthetic": False, "formats": ["NIfTI"]}
READ_THERE = {"where": "https://example.org, Table 1", "checked": True}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder of cards."""
    monkeypatch.setenv("OMNIMRI_CARDS", str(tmp_path))
    return tmp_path


def _write(folder: Path, **fields: Any) -> Path:
    card = {**MINIMUM, **fields}
    path = folder / f"{card['id']}.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def _faults(path: Path) -> list[Fault]:
    parsed = parse_card(path)
    return parsed if isinstance(parsed, list) else []


def test_every_sample_has_a_card_with_its_rights() -> None:
    found = {card.id: card for card in list_cards()}
    assert set(SAMPLES) <= set(found)
    assert all(card.rights and (card.synthetic or card.public_sample) for card in found.values() if card.id in SAMPLES)


def test_what_is_generated_says_so() -> None:
    assert all(load_card(sample).synthetic == sample.startswith("synthetic") for sample in SAMPLES)


def test_an_unknown_card_is_refused_with_the_remedy(own: Path) -> None:
    with pytest.raises(BadInput, match="catalog list") as refused:
        load_card("no-such-dataset")
    assert str(own) in str(refused.value)


def test_the_least_a_card_can_say_leaves_everything_else_unknown(tmp_path: Path) -> None:
    card = parse_card(_write(tmp_path))
    assert isinstance(card, DatasetCard)
    assert (card.patients, card.licence, card.regions, card.label_map, card.layout) == (None, None, (), {}, Layout())


@pytest.mark.parametrize(
    ("fields", "field", "what"),
    [
        ({"lisence": "MIT"}, "lisence", "no such field"),
        ({"formats": ["GIF"]}, "formats.0", "DICOM"),
        ({"layout": {"patient": "sub-[0-9]+"}}, "layout.patient", "exactly one group"),
        ({"layout": {"case": "(sub-[0-9]+"}}, "layout.case", "not a regular expression"),
        ({"doi": "https://doi.org/10.1038/s41597-023-02181-4"}, "doi", "without https://doi.org/"),
        ({"label_map": {0: "air"}}, "label_map", "background"),
        ({"label_map": {1: "lesion", 2: "Lesion "}}, "label_map", "one name"),
        ({"age_years": [70, 20], "sources": {"age_years": READ_THERE}}, "age_years", "the lower first"),
        ({"landing_page": "fastmri.org"}, "landing_page", "pattern"),
        ({"regions": ["Atlantis"]}, "regions.0", "Europe"),
        ({"patients": 20}, "", "sources.patients"),
        ({"field_strengths_t": [3.0]}, "", "field_strengths_t without a source"),
        ({"patients": 20, "sources": {"patients": {"where": "a page on the web"}}}, "sources.patients.checked", "required"),
        ({"sources": {"scans": READ_THERE}}, "", "leaves empty"),
        ({"patients": 9, "scans": 3, "sources": {"patients": READ_THERE, "scans": READ_THERE}}, "", "more patients"),
        ({"patients": 9, "male": 5, "female": 5, "sources": dict.fromkeys(("patients", "male", "female"), READ_THERE)}, "", "men"),
        ({"overlaps": {"mine": "all"}}, "", "itself"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, fields: dict[str, Any], field: str, what: str) -> None:
    (fault,) = _faults(_write(tmp_path, **fields))
    assert fault.field == field
    assert what in fault.what
    assert fault.remedy and fault.file.endswith("mine.yaml")


def test_a_figure_with_its_source_is_accepted(tmp_path: Path) -> None:
    assert not _faults(_write(tmp_path, patients=20, sources={"patients": READ_THERE}))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    faults = _faults(_write(tmp_path, doi="none", formats=["GIF"], colour="red"))
    assert {fault.field for fault in faults} == {"doi", "formats.0", "colour"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("id: [", "YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("", "not a mapping"),
        ("id: mine\nid: other\n", "'id' stands twice"),
        ("label_map: {1: a, 1: b}\n", "1 stands twice"),
        ("!!python/object/apply:os.system [true]", "YAML"),
    ],
)
def test_what_is_not_a_card_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    (fault,) = _faults(tmp_path / "mine.yaml")
    assert what in f"{fault.what} {fault.remedy}"


def test_a_card_and_its_file_have_one_name(tmp_path: Path) -> None:
    _write(tmp_path).rename(tmp_path / "other.yaml")
    (fault,) = _faults(tmp_path / "other.yaml")
    assert fault.field == "id"


def test_the_users_own_cards_are_found_beside_ours(own: Path) -> None:
    _write(own)
    assert load_card("mine").name == "M"
    assert {"mine", "pi-cai"} <= {card.id for card in list_cards()}


def test_an_own_card_cannot_take_the_place_of_ours(own: Path) -> None:
    _write(own, id="pi-cai")
    with pytest.raises(BadInput, match="another id"):
        load_card("pi-cai")


def test_a_broken_own_card_is_named_when_it_is_used(own: Path) -> None:
    _write(own, doi="none")
    with pytest.raises(BadInput, match=r"mine\.yaml.*doi"):
        load_card("mine")


def test_an_image_that_the_layout_does_not_name_is_left_out() -> None:
    layout = Layout(images=("*_T1w.nii.gz",), labels=("*_dseg.nii.gz",), ignored=("sourcedata/*",))
    kept = ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_dseg.nii.gz", "sub-1/anat/sub-1_T1w.json", "participants.tsv"]
    assert [path for path in kept if layout.leaves_out(path)] == []
    assert layout.leaves_out("derivatives/sub-1_brainmask.nii.gz") and layout.leaves_out("sourcedata/sub-1_T1w.nii.gz")
    assert not Layout().leaves_out("anything.nii.gz")


def test_cards_are_chosen_by_all_that_is_asked_for() -> None:
    found = filtered(list_cards(), anatomy="knee", task="reconstruction", access=None, file_format="k-space HDF5")
    assert {"fastmri-knee", "fastmri-plus-knee"} <= {card.id for card in found}
    assert all(card.anatomy == "knee" and "reconstruction" in card.tasks for card in found)
    with pytest.raises(BadInput, match="one of: reconstruction"):
        filtered([], anatomy=None, task="recon", access=None, file_format=None)
