"""Cards: required fields, sources of statistics, and faults that name field and remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.catalog import CardFault, list_cards, load_card
from components.catalog.cards import DatasetCard, Layout, filter_cards, parse_card
from components.errors import BadInput
from components.samples import SAMPLES

MINIMUM = {"id": "mine", "name": "M", "rights": "ours", "synthetic": False, "formats": ["NIfTI"]}
VERIFIED = {"where": "https://example.org, Table 1", "checked": True}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the user's own folder of cards."""
    monkeypatch.setenv("OMNIMRI_CARDS", str(tmp_path))
    return tmp_path


def _write(folder: Path, **fields: Any) -> Path:
    card = {**MINIMUM, **fields}
    path = folder / f"{card['id']}.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def _faults(path: Path) -> list[CardFault]:
    parsed = parse_card(path)
    return parsed if isinstance(parsed, list) else []


def test_every_sample_has_a_card_with_its_rights() -> None:
    found = {card.id: card for card in list_cards()}
    assert set(SAMPLES) <= set(found)
    assert all(card.rights and (card.synthetic or card.public_sample) for card in found.values() if card.id in SAMPLES)


def test_generated_samples_are_marked_synthetic() -> None:
    assert all(load_card(sample).synthetic == sample.startswith("synthetic") for sample in SAMPLES)


def test_an_unknown_card_is_rejected_with_a_remedy(own: Path) -> None:
    with pytest.raises(BadInput, match="catalog list") as error:
        load_card("no-such-dataset")
    assert str(own) in str(error.value)


def test_optional_fields_of_a_minimal_card_are_unknown(tmp_path: Path) -> None:
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
        ({"age_years": [70, 20], "sources": {"age_years": VERIFIED}}, "age_years", "the lower first"),
        ({"landing_page": "fastmri.org"}, "landing_page", "pattern"),
        ({"regions": ["Atlantis"]}, "regions.0", "Europe"),
        ({"patients": 20}, "", "sources.patients"),
        ({"field_strengths_t": [3.0]}, "", "field_strengths_t without a source"),
        ({"patients": 20, "sources": {"patients": {"where": "a page on the web"}}}, "sources.patients.checked", "required"),
        ({"sources": {"scans": VERIFIED}}, "", "is empty in this card"),
        ({"patients": 9, "scans": 3, "sources": {"patients": VERIFIED, "scans": VERIFIED}}, "", "more patients"),
        (
            {"patients": 9, "male": 5, "female": 5, "sources": dict.fromkeys(("patients", "male", "female"), VERIFIED)},
            "",
            "more male and female",
        ),
        ({"overlaps": {"mine": "all"}}, "", "itself"),
    ],
)
def test_an_invalid_field_is_reported(tmp_path: Path, fields: dict[str, Any], field: str, what: str) -> None:
    (fault,) = _faults(_write(tmp_path, **fields))
    assert fault.field == field
    assert what in fault.what
    assert fault.remedy and fault.file.endswith("mine.yaml")


def test_a_statistic_with_a_source_is_accepted(tmp_path: Path) -> None:
    assert not _faults(_write(tmp_path, patients=20, sources={"patients": VERIFIED}))


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    faults = _faults(_write(tmp_path, doi="none", formats=["GIF"], color="red"))
    assert {fault.field for fault in faults} == {"doi", "formats.0", "color"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("id: [", "YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("", "not a mapping"),
        ("id: mine\nid: other\n", "duplicate key 'id'"),
        ("label_map: {1: a, 1: b}\n", "duplicate key 1"),
        ("!!python/object/apply:os.system [true]", "YAML"),
    ],
)
def test_a_file_that_is_not_a_card_is_rejected(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    (fault,) = _faults(tmp_path / "mine.yaml")
    assert what in f"{fault.what} {fault.remedy}"


def test_the_id_of_a_card_equals_its_file_name(tmp_path: Path) -> None:
    _write(tmp_path).rename(tmp_path / "other.yaml")
    (fault,) = _faults(tmp_path / "other.yaml")
    assert fault.field == "id"


def test_user_cards_are_listed_with_the_packaged_ones(own: Path) -> None:
    _write(own)
    assert load_card("mine").name == "M"
    assert {"mine", "pi-cai"} <= {card.id for card in list_cards()}


def test_an_invalid_user_card_hides_no_other_and_is_logged(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own / "broken.yaml").write_text("id: broken\n")
    assert "pi-cai" in {card.id for card in list_cards()}
    assert "broken.yaml" in caplog.text


def test_a_user_card_cannot_replace_a_packaged_one(own: Path) -> None:
    _write(own, id="pi-cai")
    with pytest.raises(BadInput, match="another id"):
        load_card("pi-cai")


def test_an_invalid_user_card_is_reported_when_it_is_loaded(own: Path) -> None:
    _write(own, doi="none")
    with pytest.raises(BadInput, match=r"mine\.yaml.*doi"):
        load_card("mine")


def test_images_that_no_glob_matches_are_excluded() -> None:
    layout = Layout(images=("*_T1w.nii.gz",), labels=("*_dseg.nii.gz",), ignored=("sourcedata/*",))
    included = ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_dseg.nii.gz", "sub-1/anat/sub-1_T1w.json", "participants.tsv"]
    assert [path for path in included if layout.excludes(path)] == []
    assert layout.excludes("derivatives/sub-1_brainmask.nii.gz") and layout.excludes("sourcedata/sub-1_T1w.nii.gz")
    assert not Layout().excludes("anything.nii.gz")


def test_cards_are_filtered_by_all_criteria() -> None:
    found = filter_cards(list_cards(), anatomy="knee", task="reconstruction", access=None, file_format="k-space HDF5")
    assert {"fastmri-knee", "fastmri-plus-knee"} <= {card.id for card in found}
    assert all(card.anatomy == "knee" and "reconstruction" in card.tasks for card in found)
    with pytest.raises(BadInput, match="one of: reconstruction"):
        filter_cards([], anatomy=None, task="recon", access=None, file_format=None)


@pytest.mark.parametrize(
    ("fields", "field", "what"),
    [
        ({"layout": {"orientation": "LAA"}}, "layout.orientation", "L/R, A/P and S/I"),
        ({"layout": {"orientation": "LPX"}}, "layout.orientation", "L/R, A/P and S/I"),
        ({"layout": {"label_channels": [0, -1]}}, "layout.label_channels", "negative"),
        ({"layout": {"label_channels": [0, 3]}, "label_map": {1: "a"}}, "", "does not name the value 3"),
        ({"layout": {"tissue_maps": {300: "*_a.nii"}}}, "", "does not name the value 300"),
        ({"label_map": {value: str(value) for value in range(1, 300)}}, "label_map", "255 at most"),
        ({"layout": {"lables": ["x"]}}, "layout.lables", "no such field"),
        ({"layout": {"labels": 3}}, "layout.labels", "not a list"),
        ({"layout": ["x"]}, "layout", "not a mapping"),
        ({"layout": {"tables": [{"key": 0}]}}, "layout.tables.0.path", "missing"),
        ({"patients": "many"}, "patients", "not a whole number"),
        ({"synthetic": "perhaps"}, "synthetic", "neither true nor false"),
    ],
)
def test_each_fault_is_one_plain_sentence_with_the_remedy_of_its_field(
    tmp_path: Path, fields: dict[str, Any], field: str, what: str
) -> None:
    (fault,) = _faults(_write(tmp_path, **fields))
    assert fault.field == field and what in fault.what and fault.remedy and "Input" not in fault.what


def test_a_card_with_several_faults_has_a_remedy_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_CARDS", str(tmp_path))
    _write(tmp_path, doi="none", layout={"labels": 3})
    with pytest.raises(
        BadInput, match=r"2 faults: doi: not a DOI.*\(DOI of .*\); layout\.labels: not a list \(globs of label maps"
    ):
        load_card("mine")


@pytest.mark.parametrize(("values", "codes"), [((1, 2, 255), {1: 1, 2: 2, 255: 255}), ((500, 88, 2221), {88: 1, 500: 2, 2221: 3})])
def test_label_values_above_255_are_stored_by_rank(values: tuple[int, ...], codes: dict[int, int]) -> None:
    card = DatasetCard(
        id="x", name="x", rights="x", formats=("NIfTI",), synthetic=True, label_map={value: f"s{value}" for value in values}
    )
    assert card.label_codes == codes and card.stored_label_map == {code: f"s{value}" for value, code in codes.items()}
