"""Dataset cards: one YAML file for each dataset. What is not known is null; every figure says where it is stated.

Cards lie in ``components/catalog/datasets/`` and in the user's own folder (``OMNIMRI_HOME/cards``; ``OMNIMRI_CARDS`` moves it).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.errors import BadInput
from components.home import Home

FOLDER = Path(__file__).parent / "datasets"
DOI = re.compile(r"10\.\d{4,9}/\S+")

Access = Literal["open", "registration", "agreement", "restricted"]
Region = Literal["North America", "South America", "Europe", "Asia", "Africa", "Oceania"]
Task = Literal["reconstruction", "segmentation", "detection", "diagnosis", "report"]
Plane = Literal["axial", "sagittal", "coronal"]
READ = ("DICOM", "NIfTI", "MetaImage", "NumPy", "k-space HDF5", "ISMRMRD")
"""Formats that ingestion reads; a card of other formats only describes."""
Format = Literal[
    "DICOM", "NIfTI", "MetaImage", "NumPy", "k-space HDF5", "ISMRMRD", "HDF5", "MATLAB", "NRRD", "PNG", "pickle", "other"
]
"""Formats of the cards: ``k-space HDF5`` is fastMRI's form, ``HDF5`` any other."""

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mha", ".mhd", ".npy", ".h5", ".hdf5")
"""Of files that a layout's globs of images choose from; sidecars and tables are not among them."""

COUNTS = ("patients", "scans", "volumes", "slices")
FIGURES = (*COUNTS, "male", "female", "age_years", "mean_age_years", "field_strengths_t")
"""Fields that no card may fill without a source."""
FACTS = ("licence", "label_map", "vendors", "layout", "overlaps")
"""Fields whose source a card may name too; the cards that come with OmniMRI must."""


def matches(relative: str, patterns: Iterable[str]) -> bool:
    """Whether one of the globs matches a path relative to the dataset's folder. ``*`` goes across folders."""
    return any(fnmatch.fnmatch(relative, pattern) for pattern in patterns)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _with_one_group(expression: str | None) -> str | None:
    try:
        groups = re.compile(expression).groups if expression is not None else 1
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError("the expression needs exactly one group, e.g. '(sub-[^/]+)'")
    return expression


class Table(_Strict):
    """A table (CSV by comma, semicolon or tab; or XLSX), whose rows are about images."""

    path: str = Field(description="glob of the table")
    key: str | int = Field(
        default=0, description="column that names the image: by title, or by number from 0 in a table without titles"
    )
    image: str | None = Field(
        default=None,
        description="regular expression on an image's relative path; group 1 is looked up in the key column. None = the card's "
        "patient expression; for DICOM, Patient ID",
    )

    @field_validator("image")
    @classmethod
    def _has_one_group(cls, value: str | None) -> str | None:
        return _with_one_group(value)


class LabelTable(Table):
    """A table with findings, reports, sex or age of patients or examinations."""

    findings: dict[str | int, str] = Field(
        default_factory=dict, description="column (title or number) -> finding, e.g. {acl: acl tear}"
    )
    report: str | int | None = Field(default=None, description="column (title or number) of the radiologist's text")
    sex: str | int | None = Field(default=None, description="column (title or number) of the sex, where headers do not say it")
    age: str | int | None = Field(default=None, description="column (title or number) of the age in years, likewise")
    values: dict[str, bool] = Field(
        default={"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True},
        description="cell, lower case -> present; any other cell = not known",
    )


class BoxTable(Table):
    """A table with a lesion's 3-D box in each row: its first and its last slice, row and column, both inside, in the order of the
    image's file (of single-frame DICOM, that of the instance numbers).
    """

    slices: tuple[str | int, str | int] = Field(description="columns (title or number) of the first and the last slice")
    rows: tuple[str | int, str | int] = Field(description="columns of the first and the last row")
    columns: tuple[str | int, str | int] = Field(description="columns of the first and the last column")
    first: Literal[0, 1] = Field(default=0, description="what the table calls the first slice, row and column: 0 or 1")
    label: str = Field(default="lesion", description="what the boxes are of")


class Layout(_Strict):
    """How the files of a dataset lie in its folder. Globs are relative to it and cross folders; so does ``*``. What a file is, its
    content tells; for plain DICOM none of this is needed.
    """

    images: tuple[str, ...] = Field(
        default=(), description="globs of the images; others are then left out. Empty = every image that is no label map"
    )
    labels: tuple[str, ...] = Field(default=(), description="globs of label maps (values by the card's label map)")
    tissue_maps: dict[int, str] = Field(
        default_factory=dict,
        description="label value -> glob of its probability map, or of the binary mask of this structure alone",
    )
    ignored_structures: tuple[str, ...] = Field(
        default=(),
        description='globs of structures in DICOM RT Structure Sets that are left out on purpose, lower case, e.g. "couch*"',
    )
    case: str | None = Field(
        default=None,
        description="regular expression on the relative path; images and label maps with the same group 1 belong together. None = "
        "those of a patient do",
    )
    boxes: tuple[str | BoxTable, ...] = Field(
        default=(), description="tables of lesion boxes: a glob for one in fastMRI+'s form (CSV), or path and columns of another"
    )
    reviewed: tuple[str, ...] = Field(
        default=(),
        description="globs of lists (one name a line) of the files that were looked at for boxes: without a box, no lesion",
    )
    tables: tuple[LabelTable, ...] = Field(default=(), description="tables of findings, reports, sex and age")
    patient: str | None = Field(default=None, description="regular expression on the relative path; group 1 names the patient")
    sequences: dict[str, str] = Field(default_factory=dict, description="text in the relative path -> sequence")
    channels: tuple[str, ...] = Field(
        default=(),
        description="sequences of the images along the fourth axis of a 4-D file: each becomes a volume. Empty = a 4-D file counts "
        "as repeats of one image, of which the first is used, if sequences says what it is; else it is refused",
    )
    planes: dict[str, Plane] = Field(default_factory=dict, description="NumPy: text in the relative path -> plane; none = axial")
    spacing_mm: tuple[float, float, float] = Field(
        default=(1.0, 1.0, 1.0), description="NumPy: (slice, row, column), as arrays carry none; the default is nominal"
    )
    ignored: tuple[str, ...] = Field(default=(), description="globs of files that are left out on purpose, e.g. derived masks")

    @field_validator("patient", "case")
    @classmethod
    def _has_one_group(cls, value: str | None) -> str | None:
        return _with_one_group(value)

    def globs(self) -> Iterator[tuple[str, str]]:
        """Each glob with the field it stands in."""
        for name in ("images", "labels", "reviewed", "ignored"):
            yield from ((name, pattern) for pattern in getattr(self, name))
        yield from (("boxes", table if isinstance(table, str) else table.path) for table in self.boxes)
        yield from ((f"tissue_maps.{value}", pattern) for value, pattern in self.tissue_maps.items())
        yield from (("tables", table.path) for table in self.tables)

    def leaves_out(self, relative: str) -> bool:
        """Whether a file is left out on purpose: it is ignored, or the images are named and it is another one (by its name)."""
        if matches(relative, self.ignored):
            return True
        other = relative.lower().endswith(IMAGE_SUFFIXES) and not matches(relative, [pattern for _, pattern in self.globs()])
        return bool(self.images) and other


class Source(_Strict):
    """Where a figure is stated."""

    where: str = Field(min_length=8, description="address or DOI, with section or table, and how it was counted if it was")
    checked: bool = Field(
        description="true: read there when the card was written; false: known from the publication, not read again"
    )


class DatasetCard(_Strict):
    """One dataset."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="its name everywhere in OmniMRI, and its folder under data/")
    name: str = Field(min_length=1, description="as its publishers call it")
    landing_page: str | None = Field(default=None, pattern=r"^https?://\S+$", description="where it is described and asked for")
    licence: str | None = Field(default=None, description="SPDX id or the publisher's own name for it")
    access: Access | None = Field(
        default=None,
        description="open, registration (an account), agreement (signed terms) or restricted (an application, or a fee)",
    )
    rights: str = Field(min_length=1, description="what may be done with it, in one or two sentences")
    doi: str | None = Field(default=None, description="of the paper to cite, e.g. 10.1038/s41597-023-02181-4")
    version: str | None = Field(default=None, description="release that the figures are of")
    regions: tuple[Region, ...] = Field(default=(), description="continents where patients were scanned")
    anatomy: str | None = Field(default=None, description="one word for all of it: brain, knee, abdomen, ...")
    formats: tuple[Format, ...] = Field(description="of the images as published")
    layout: Layout = Field(default=Layout(), description="where images, labels and tables lie")
    tasks: tuple[Task, ...] = Field(default=(), description="what its annotations, or its raw data, can supervise")
    label_map: dict[int, str] = Field(default_factory=dict, description="label value -> structure; the background 0 is not named")
    field_strengths_t: tuple[float, ...] = Field(default=(), description="tesla")
    vendors: tuple[str, ...] = Field(default=(), description="makers of the scanners")
    sequences: tuple[str, ...] = Field(default=(), description="kinds of images")
    synthetic: bool = Field(description="generated, no scan of a person")
    public_sample: bool = Field(default=False, description="comes with a Python package, known to everybody already")
    patients: int | None = Field(default=None, ge=0, description="people whose images are published")
    scans: int | None = Field(default=None, ge=0, description="examinations: one person, one visit to a scanner")
    volumes: int | None = Field(default=None, ge=0, description="images, each of one sequence of one examination")
    slices: int | None = Field(default=None, ge=0, description="two-dimensional images that make up the volumes")
    male: int | None = Field(default=None, ge=0, description="men among the patients")
    female: int | None = Field(default=None, ge=0, description="women among the patients")
    age_years: tuple[float, float] | None = Field(default=None, description="age of the youngest and of the oldest patient")
    mean_age_years: float | None = Field(default=None, description="mean age")
    overlaps: dict[str, int | Literal["all"] | None] = Field(
        default_factory=dict,
        description='id of another card -> how many of these patients are in it too: a number, null (some), or "all" (in it and in '
        "the others so marked, together)",
    )
    sources: dict[str, Source] = Field(default_factory=dict, description="field of this card -> where it is stated")
    notes: str | None = Field(default=None, description="what a reader of the figures must know")

    @field_validator("doi")
    @classmethod
    def _is_a_doi(cls, value: str | None) -> str | None:
        if value is not None and not DOI.fullmatch(value):
            raise ValueError("not a DOI: 10., the registrant's number, a slash and the rest, without https://doi.org/")
        return value

    @field_validator("label_map")
    @classmethod
    def _names_each_structure_once(cls, value: dict[int, str]) -> dict[int, str]:
        if any(key <= 0 for key in value):
            raise ValueError("label values are positive; 0 is the background and is not named")
        names = [name.strip().lower() for name in value.values()]
        if "" in names or len(set(names)) < len(names):
            raise ValueError("two label values of one name, or one without a name")
        return value

    @field_validator("age_years")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1] <= 120:
            raise ValueError("two ages in years, the lower first")
        return value

    @model_validator(mode="after")
    def _figures_have_sources(self) -> DatasetCard:
        bare = [name for name in FIGURES if filled(self, name) and name not in self.sources]
        if bare:
            raise ValueError(f"{', '.join(bare)} without a source: add sources.{bare[0]}, or leave the figure out")
        loose = [name for name in self.sources if name not in (*FIGURES, *FACTS) or not filled(self, name)]
        if loose:
            raise ValueError(f"sources.{loose[0]} is about a field that this card leaves empty")
        return self

    @model_validator(mode="after")
    def _figures_fit_each_other(self) -> DatasetCard:
        counts = [(name, getattr(self, name)) for name in COUNTS if getattr(self, name) is not None]
        for (less, few), (more, many) in pairwise(counts):
            if few > many:
                raise ValueError(f"more {less} ({few}) than {more} ({many})")
        if self.patients is not None and (self.male or 0) + (self.female or 0) > self.patients:
            raise ValueError("more men and women than patients")
        if self.id in self.overlaps:
            raise ValueError("overlaps names the card itself")
        return self

    @property
    def counts(self) -> bool:
        """Whether it is a dataset of people, and no sample that the demo is made of."""
        return not (self.synthetic or self.public_sample)

    @property
    def read(self) -> bool:
        """Whether ingestion reads at least one of its formats."""
        return any(one in READ for one in self.formats)


def filled(card: DatasetCard, name: str) -> bool:
    """Whether a card says anything in a field."""
    value = getattr(card, name)
    return value not in (None, (), {}) and value != Layout()


@dataclass(frozen=True)
class Fault:
    """What is wrong with a card: the file, the field, the fault and what to do."""

    file: str
    field: str
    what: str
    remedy: str


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, several times as fast, where PyYAML was built with it


class _Loader(_SafeLoader):
    """YAML's safe subset, in which a key said twice is a fault: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def parse_card(path: Path) -> DatasetCard | list[Fault]:
    """One card out of its file, or everything that is wrong with it."""
    try:
        content = yaml.load(path.read_text(), _Loader)  # noqa: S506 (a subclass of SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        return [Fault(str(path), "", f"cannot be read: {type(error).__name__}", "give a YAML file in UTF-8")]
    except yaml.YAMLError as error:
        return [Fault(str(path), "", " ".join(str(error).split()), "mend the YAML at that line")]
    if not isinstance(content, dict):
        return [Fault(str(path), "", "not a mapping of fields", "begin with 'id: ...'; docs/catalog.md has an example")]
    try:
        card = DatasetCard.model_validate(content)
    except ValidationError as error:
        return [_fault(path, [str(part) for part in one["loc"]], one["type"], one["msg"]) for one in error.errors()]
    if card.id != path.stem:
        return [Fault(str(path), "id", f"the card calls itself {card.id!r}", "give id and file the same name")]
    return card


def _fault(path: Path, where: list[str], kind: str, message: str) -> Fault:
    """One complaint of pydantic in our words; the remedy is what the field is for."""
    field = DatasetCard.model_fields.get(where[0]) if where else None
    message = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return Fault(str(path), ".".join(where), "no such field", f"one of: {', '.join(DatasetCard.model_fields)}")
    return Fault(str(path), ".".join(where), message, str(field.description) if field else "mend the card")


def card_folders() -> tuple[Path, ...]:
    """Where cards lie: OmniMRI's own folder, then the user's."""
    return FOLDER, Home.open().cards


def card_paths() -> dict[str, Path]:
    """Id -> file of every card.

    Raises:
        BadInput: a card of the user's has the name of one of OmniMRI's.
    """
    found: dict[str, Path] = {}
    for folder in card_folders():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in found:
                raise BadInput(
                    "a card of this name comes with OmniMRI", where=str(path), remedy="give yours another id and file name"
                )
            found[path.stem] = path
    return dict(sorted(found.items()))


def load_card(dataset_id: str) -> DatasetCard:
    """Read one card.

    Raises:
        BadInput: no such card, or a card whose fields are wrong.
    """
    path = card_paths().get(dataset_id)
    if path is None:
        own = card_folders()[-1]
        raise BadInput(
            "no such dataset card", where=dataset_id, remedy=f"omnimri catalog list names those there are; yours go to {own}"
        )
    return _sound(parse_card(path))


def list_cards() -> list[DatasetCard]:
    """Every card, by id."""
    return [_sound(parse_card(path)) for path in card_paths().values()]


def packaged_cards() -> list[DatasetCard]:
    """The cards that come with OmniMRI, by id."""
    return [_sound(parse_card(path)) for path in sorted(FOLDER.glob("*.yaml"))]


def _sound(parsed: DatasetCard | list[Fault]) -> DatasetCard:
    if isinstance(parsed, DatasetCard):
        return parsed
    said = "; ".join(f"{fault.field}: {fault.what}" if fault.field else fault.what for fault in parsed)
    raise BadInput(f"the card does not hold: {said}", where=parsed[0].file, remedy=parsed[0].remedy)


def filtered(
    cards: Iterable[DatasetCard], *, anatomy: str | None, task: str | None, access: str | None, file_format: str | None
) -> list[DatasetCard]:
    """Cards that have all that is asked for.

    Raises:
        BadInput: a word that no card can have.
    """
    for name, word, words in (("task", task, Task), ("access", access, Access), ("format", file_format, Format)):
        if word is not None and word not in get_args(words):
            raise BadInput(f"no such {name}: {word}", where=f"--{name}", remedy=f"one of: {', '.join(get_args(words))}")
    return [
        card
        for card in cards
        if (anatomy is None or card.anatomy == anatomy)
        and (task is None or task in card.tasks)
        and (access is None or card.access == access)
        and (file_format is None or file_format in card.formats)
    ]
