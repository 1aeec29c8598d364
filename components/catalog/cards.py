"""Dataset cards: one YAML file for each dataset. Unknown fields are null; every statistic cites its source.

Cards are stored in ``components/catalog/datasets/`` and in the user's own folder (``OMNIMRI_HOME/cards``; ``OMNIMRI_CARDS``
overrides it).
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.errors import BadInput
from components.home import Home
from components.registries import FORMATS, TASKS
from components.settings import TaskName

logger = logging.getLogger(__name__)
FOLDER = Path(__file__).parent / "datasets"
DOI = re.compile(r"10\.\d{4,9}/\S+")

Access = Literal["open", "registration", "agreement", "restricted"]
Region = Literal["North America", "South America", "Europe", "Asia", "Africa", "Oceania"]
Plane = Literal["axial", "sagittal", "coronal"]
READABLE_FORMATS = ("DICOM", "NIfTI", "MetaImage", "NumPy", "k-space HDF5", "ISMRMRD")
"""Formats that ingestion reads, by their usual names: ``k-space HDF5`` is the fastMRI format."""
OTHER_FORMATS = ("HDF5", "MATLAB", "NRRD", "PNG", "pickle", "other")
"""Formats that a card may list without ingestion reading them. A card with no other formats only documents its dataset."""


def _require_known_format(name: str) -> str:
    """Accept the usual name of a format, or the name of a registered one, such as a plugin's."""
    if name not in (*READABLE_FORMATS, *OTHER_FORMATS, *FORMATS):
        raise ValueError(f"no such format; one of {', '.join((*READABLE_FORMATS, *FORMATS, *OTHER_FORMATS))}")
    return name


Format = Annotated[str, AfterValidator(_require_known_format)]

MAX_STORED_LABEL = 255
"""Largest label value under ``data/``."""
_AXIS_OF = {"L": "L", "R": "L", "A": "A", "P": "A", "S": "S", "I": "S"}
"""Anatomical direction -> name of its axis."""
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mha", ".mhd", ".npy", ".h5", ".hdf5")
"""Suffixes of the files that ``layout.images`` selects from; sidecars and tables are not selected by it."""

COUNTS = ("patients", "scans", "volumes", "slices")
STATISTICS = (*COUNTS, "male", "female", "age_years", "mean_age_years", "field_strengths_t")
"""Fields that a card must not fill without a source."""
SOURCED_FACTS = ("licence", "label_map", "vendors", "layout", "overlaps")
"""Further fields whose source a card may cite; the cards packaged with OmniMRI must cite it."""


def matches_any(relative: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the globs matches a path relative to the dataset folder. ``*`` also matches ``/``."""
    return any(fnmatch.fnmatch(relative, pattern) for pattern in patterns)


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _require_one_group(expression: str | None) -> str | None:
    try:
        groups = re.compile(expression).groups if expression is not None else 1
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError("the expression needs exactly one group, e.g. '(sub-[^/]+)'")
    return expression


class Table(_StrictModel):
    """A table (CSV separated by comma, semicolon or tab; or XLSX) with rows about images."""

    path: str = Field(description="glob of the table")
    key: str | int = Field(
        default=0, description="column that identifies the image: its title, or its number from 0 in a table without titles"
    )
    image: str | None = Field(
        default=None,
        description="regular expression on the relative path of an image; group 1 is looked up in the key column. None = the "
        "patient expression of the card; for DICOM, Patient ID",
    )

    @field_validator("image")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        return _require_one_group(value)


class LabelTable(Table):
    """A table with findings, reports, sex or age of patients or examinations."""

    findings: dict[str | int, str] = Field(
        default_factory=dict, description="column (title or number) -> finding, e.g. {acl: acl tear}"
    )
    report: str | int | None = Field(default=None, description="column (title or number) of the radiology report")
    sex: str | int | None = Field(default=None, description="column (title or number) of the sex, if the headers lack it")
    age: str | int | None = Field(default=None, description="column (title or number) of the age in years, if the headers lack it")
    values: dict[str, bool] = Field(
        default={"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True},
        description="cell, lower case -> finding present; any other cell = unknown",
    )


class BoxTable(Table):
    """A table with one 3-D lesion box per row: its first and last slice, row and column, both inclusive.

    Indices follow the storage order of the image file (for single-frame DICOM, the order of the instance numbers).
    """

    slices: tuple[str | int, str | int] = Field(description="columns (title or number) of the first and the last slice")
    rows: tuple[str | int, str | int] = Field(description="columns of the first and the last row")
    columns: tuple[str | int, str | int] = Field(description="columns of the first and the last column")
    first: Literal[0, 1] = Field(default=0, description="index of the first slice, row and column in the table: 0 or 1")
    label: str = Field(default="lesion", description="finding that the boxes mark")


class Layout(_StrictModel):
    """Layout of the files of a dataset in its folder.

    Globs match the path relative to that folder; ``*`` also matches ``/``. The type of a file is detected from its content.
    Plain DICOM needs no layout.
    """

    images: tuple[str, ...] = Field(
        default=(),
        description="globs of the images; all other images are then excluded. Empty = every image that is not a label map",
    )
    labels: tuple[str, ...] = Field(default=(), description="globs of label maps; the card field label_map names their values")
    tissue_maps: dict[int, str] = Field(
        default_factory=dict,
        description="label value -> glob of its probability map, or of the binary mask of this one structure",
    )
    ignored_structures: tuple[str, ...] = Field(
        default=(),
        description='globs, lower case, of names of structures to exclude from DICOM RT Structure Sets, e.g. "couch*"',
    )
    case: str | None = Field(
        default=None,
        description="regular expression on the relative path; images and label maps with the same group 1 belong together. None = "
        "all images and label maps of a patient belong together",
    )
    boxes: tuple[str | BoxTable, ...] = Field(
        default=(), description="tables of lesion boxes: a glob for a fastMRI+ table (CSV), or path and columns of another table"
    )
    reviewed: tuple[str, ...] = Field(
        default=(),
        description="globs of lists (one file name per line) of files reviewed for lesions: reviewed and without a box = no lesion",
    )
    tables: tuple[LabelTable, ...] = Field(default=(), description="tables of findings, reports, sex and age")
    patient: str | None = Field(default=None, description="regular expression on the relative path; group 1 identifies the patient")
    sequences: dict[str, str] = Field(default_factory=dict, description="text in the relative path -> sequence")
    channels: tuple[str, ...] = Field(
        default=(),
        description="sequences of the images along the fourth axis of a 4-D file: each becomes a volume. Empty = a 4-D file is "
        "treated as repeats of one image and the first is used, if sequences gives its sequence; otherwise it is rejected",
    )
    label_channels: tuple[int, ...] = Field(
        default=(),
        description="label value of each channel along the fourth axis of a label map, 0 = background; a later channel covers an "
        "earlier one where both are set. Empty = label maps with a fourth axis are rejected",
    )
    orientation: str | None = Field(
        default=None,
        description="anatomical directions of the axes (x, y, z) of NIfTI files whose headers state none, e.g. LAS: toward left, "
        "anterior, superior. None = such files are rejected",
    )
    planes: dict[str, Plane] = Field(default_factory=dict, description="NumPy: text in the relative path -> plane; default axial")
    spacing_mm: tuple[float, float, float] = Field(
        default=(1.0, 1.0, 1.0),
        description="NumPy: (slice, row, column) spacing, which arrays do not store; the default is nominal",
    )
    ignored: tuple[str, ...] = Field(default=(), description="globs of files to exclude, e.g. derived masks")

    @field_validator("patient", "case")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        return _require_one_group(value)

    @field_validator("orientation")
    @classmethod
    def _check_orientation(cls, value: str | None) -> str | None:
        if value is not None and sorted("LAS".find(_AXIS_OF.get(code, "?")) for code in value) != [0, 1, 2]:
            raise ValueError("name the direction of each axis with one letter of L/R, A/P and S/I, e.g. LAS")
        return value

    @field_validator("label_channels")
    @classmethod
    def _check_channels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(label < 0 for label in value):
            raise ValueError("label values must not be negative; 0 is the background")
        return value

    def globs(self) -> Iterator[tuple[str, str]]:
        """Yield each glob as ``(field name, pattern)``."""
        for name in ("images", "labels", "reviewed", "ignored"):
            yield from ((name, pattern) for pattern in getattr(self, name))
        yield from (("boxes", table if isinstance(table, str) else table.path) for table in self.boxes)
        yield from ((f"tissue_maps.{value}", pattern) for value, pattern in self.tissue_maps.items())
        yield from (("tables", table.path) for table in self.tables)

    def excludes(self, relative: str) -> bool:
        """Return whether the layout excludes a file: it is ignored, or ``images`` is given and no glob matches this image."""
        if matches_any(relative, self.ignored):
            return True
        other = relative.lower().endswith(IMAGE_SUFFIXES) and not matches_any(relative, [pattern for _, pattern in self.globs()])
        return bool(self.images) and other

    def selects(self, relative: str) -> bool:
        """Return whether ``images``, if it is given, or another glob matches a file; a plugin's images have any suffix."""
        return not self.images or matches_any(relative, [pattern for _, pattern in self.globs()])


def glob_sections(layout: Layout) -> dict[str, list[str]]:
    """Return section of a layout (images, labels, ...) -> its globs."""
    sections: dict[str, list[str]] = {}
    for name, pattern in layout.globs():
        sections.setdefault(name.partition(".")[0], []).append(pattern)
    return sections


class GeneratedSource(_StrictModel):
    """Cohort that OmniMRI generates. A patient does not depend on the number of patients."""

    anatomy: Literal["brain", "brain tumor", "knee", "prostate", "heart", "breast"] = Field(
        description="body part: one module of components/samples/anatomies"
    )
    form: Literal["dicom", "nifti", "kspace", "multicoil"] = Field(description="file format and layout")
    patients: int = Field(ge=1, le=1_000_000, description="number of patients; a profile may choose another (datasets.patients)")
    seed: int = Field(default=152, ge=0, description="seed of all random numbers")
    difficulty: float = Field(
        default=0.5, ge=0, le=1, description="0 (easy) to 1 (hard): contrast of findings from 1.5 to 0.5 times, noise from 1 to 4 %"
    )

    pixels: int | None = Field(
        default=None,
        ge=32,
        le=1024,
        description="rows and columns, over the same field of view; null = those of the anatomy",
    )

    def of_size(self, patients: int | None) -> GeneratedSource:
        """Return the same cohort with another number of patients; None = its own."""
        return self if patients is None else self.model_copy(update={"patients": patients})


class ServerSource(_StrictModel):
    """Image archive (PACS) that a dataset is fetched from."""

    server: str = Field(
        min_length=1,
        description="a name of the profile's pacs.servers, or a URL: https://host/dicom-web or dicom://AE_TITLE@host:port",
    )
    query: str = Field(default="Modality=MR", description="series to fetch, as in QIDO-RS, e.g. Modality=MR&BodyPartExamined=BRAIN")
    recent_days: int | None = Field(
        default=None, ge=1, description="only studies of the last so many days are asked for; null = all"
    )


class Source(_StrictModel):
    """Source of a statistic."""

    where: str = Field(min_length=8, description="URL or DOI, with section or table, and the counting method if it was counted")
    checked: bool = Field(
        description="true: verified at the source when the card was written; false: recalled from the publication, not verified"
    )


class DatasetCard(_StrictModel):
    """Card of one dataset."""

    id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="identifier of the dataset in OmniMRI, and its folder name under data/"
    )
    name: str = Field(min_length=1, description="name given by the publishers")
    landing_page: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="page that describes the dataset and how to get access"
    )
    licence: str | None = Field(default=None, description="SPDX id, or the name that the publisher uses")
    access: Access | None = Field(
        default=None,
        description="open, registration (an account), agreement (signed terms) or restricted (an application, or a fee)",
    )
    rights: str = Field(min_length=1, description="permitted use, in one or two sentences")
    doi: str | None = Field(default=None, description="DOI of the paper to cite, e.g. 10.1038/s41597-023-02181-4")
    version: str | None = Field(default=None, description="release that the statistics describe")
    regions: tuple[Region, ...] = Field(default=(), description="continents where patients were scanned")
    anatomy: str | None = Field(default=None, description="one term for the body part: brain, knee, abdomen, ...")
    formats: tuple[Format, ...] = Field(description="formats of the published images")
    layout: Layout = Field(default=Layout(), description="location of images, labels and tables")
    tasks: tuple[TaskName, ...] = Field(default=(), description="tasks that its annotations or raw data can supervise")
    label_map: dict[int, str] = Field(default_factory=dict, description="label value -> structure, without the background 0")
    field_strengths_t: tuple[float, ...] = Field(default=(), description="tesla")
    vendors: tuple[str, ...] = Field(default=(), description="scanner manufacturers")
    sequences: tuple[str, ...] = Field(default=(), description="MRI sequences")
    coil_reference: Literal["rss", "espirit"] | None = Field(
        default=None,
        description="reference image of k-space of several coils, from all of which reconstruction learns: root sum of squares, "
        "or the ESPIRiT-combined image; null = coils are combined at curation",
    )
    synthetic: bool = Field(description="true: generated data, not scans of people")
    generated: GeneratedSource | None = Field(default=None, description="cohort that OmniMRI generates; null = other data")
    pacs: ServerSource | None = Field(
        default=None, description="archive that the dataset is fetched from, unless a folder is named; null = none"
    )
    public_sample: bool = Field(default=False, description="true: public sample data distributed with a Python package")
    patients: int | None = Field(default=None, ge=0, description="number of people with published images")
    scans: int | None = Field(default=None, ge=0, description="number of examinations: one person, one scanner visit")
    volumes: int | None = Field(default=None, ge=0, description="number of 3-D images, each one sequence of one examination")
    slices: int | None = Field(default=None, ge=0, description="number of 2-D images in all volumes")
    male: int | None = Field(default=None, ge=0, description="number of male patients")
    female: int | None = Field(default=None, ge=0, description="number of female patients")
    age_years: tuple[float, float] | None = Field(default=None, description="age of the youngest and the oldest patient")
    mean_age_years: float | None = Field(default=None, description="mean age in years")
    overlaps: dict[str, int | Literal["all"] | None] = Field(
        default_factory=dict,
        description='id of another card -> number of these patients that are also in it: a count, null (unknown), or "all" (every '
        'patient is in this card or another one marked "all")',
    )
    sources: dict[str, Source] = Field(default_factory=dict, description="field of this card -> its source")
    notes: str | None = Field(default=None, description="caveats about the statistics")

    @field_validator("doi")
    @classmethod
    def _check_doi(cls, value: str | None) -> str | None:
        if value is not None and not DOI.fullmatch(value):
            raise ValueError("not a DOI: give 10.<registrant>/<suffix>, without https://doi.org/")
        return value

    @field_validator("label_map")
    @classmethod
    def _check_label_map(cls, value: dict[int, str]) -> dict[int, str]:
        if any(key <= 0 for key in value):
            raise ValueError("label values must be positive; 0 is the background and has no name")
        if len(value) > MAX_STORED_LABEL:
            raise ValueError(f"{len(value)} structures; label maps are stored with {MAX_STORED_LABEL} at most")
        names = [name.strip().lower() for name in value.values()]
        if "" in names or len(set(names)) < len(names):
            raise ValueError("two label values share one name, or a label value has no name")
        return value

    @field_validator("age_years")
    @classmethod
    def _check_age_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1] <= 120:
            raise ValueError("give two ages in years, the lower first")
        return value

    @model_validator(mode="after")
    def _check_sources(self) -> DatasetCard:
        unsourced = [name for name in STATISTICS if is_filled(self, name) and name not in self.sources]
        if unsourced:
            raise ValueError(f"{', '.join(unsourced)} without a source: add sources.{unsourced[0]}, or remove the value")
        unused = [name for name in self.sources if name not in (*STATISTICS, *SOURCED_FACTS) or not is_filled(self, name)]
        if unused:
            raise ValueError(f"sources.{unused[0]} is about a field that is empty in this card")
        return self

    @model_validator(mode="after")
    def _check_label_values(self) -> DatasetCard:
        used = {*self.layout.tissue_maps, *self.layout.label_channels} - {0}
        unnamed = sorted(value for value in used if value not in self.label_map)
        if unnamed and (self.label_map or max(unnamed) > MAX_STORED_LABEL):
            raise ValueError(f"label_map does not name the value {unnamed[0]} of layout.tissue_maps or layout.label_channels")
        return self

    @model_validator(mode="after")
    def _check_counts(self) -> DatasetCard:
        counts = [(name, getattr(self, name)) for name in COUNTS if getattr(self, name) is not None]
        for (larger_unit, few), (smaller_unit, many) in pairwise(counts):
            if few > many:
                raise ValueError(f"more {larger_unit} ({few}) than {smaller_unit} ({many})")
        if self.patients is not None and (self.male or 0) + (self.female or 0) > self.patients:
            raise ValueError("more male and female patients than patients")
        if self.id in self.overlaps:
            raise ValueError("overlaps lists the card itself")
        return self

    @model_validator(mode="after")
    def _check_generated(self) -> DatasetCard:
        if self.generated is not None and not self.synthetic:
            raise ValueError("generated data is synthetic: set synthetic: true")
        if self.generated is not None and self.pacs is not None:
            raise ValueError("generated data comes from no server: remove generated, or pacs")
        if self.generated is not None and any(getattr(self, name) is not None for name in COUNTS):
            raise ValueError(f"generated.patients states the size: remove {', '.join(COUNTS)}")
        return self

    @property
    def label_codes(self) -> dict[int, int]:
        """Return label value -> value under ``data/``, where labels have 8 bits: their rank (1, 2, ...) if a value exceeds 255."""
        if self.label_codes_are_values:
            return {value: value for value in self.label_map}
        return {value: rank for rank, value in enumerate(sorted(self.label_map), start=1)}

    @property
    def label_codes_are_values(self) -> bool:
        """Return whether labels are stored under the values of the label map."""
        return max(self.label_map, default=0) <= MAX_STORED_LABEL

    @property
    def stored_label_map(self) -> dict[int, str]:
        """Return value under ``data/`` -> structure."""
        return {self.label_codes[value]: name for value, name in self.label_map.items()}

    @property
    def has_real_patients(self) -> bool:
        """Return whether this is a dataset of real patients, neither synthetic nor a public sample."""
        return not (self.synthetic or self.public_sample)

    @property
    def is_readable(self) -> bool:
        """Return whether ingestion reads at least one of its formats."""
        return any(name not in OTHER_FORMATS for name in self.formats)


def is_filled(card: DatasetCard, name: str) -> bool:
    """Return whether a field of a card has a value."""
    value = getattr(card, name)
    return value not in (None, (), {}) and value != Layout()


@dataclass(frozen=True)
class CardFault:
    """An error in a card: file, field, error and remedy."""

    file: str
    field: str
    what: str
    remedy: str

    def sentence(self) -> str:
        """Return the field and its error."""
        return f"{self.field}: {self.what}" if self.field else self.what


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's loader is several times faster, if PyYAML has it


class _Loader(_SafeLoader):
    """Safe YAML loader that rejects duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        duplicate = next((key for key in keys if keys.count(key) > 1), None)
        if duplicate is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {duplicate!r}", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def parse_card(path: Path) -> DatasetCard | list[CardFault]:
    """Read a card from its file; return all faults of an invalid card."""
    try:
        content = yaml.load(path.read_text(), _Loader)  # noqa: S506 (a subclass of SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        return [CardFault(str(path), "", f"cannot be read: {type(error).__name__}", "give a YAML file in UTF-8")]
    except yaml.YAMLError as error:
        return [CardFault(str(path), "", " ".join(str(error).split()), "fix the YAML at that line")]
    if not isinstance(content, dict):
        return [CardFault(str(path), "", "not a mapping of fields", "begin with 'id: ...'; docs/catalog.md has an example")]
    try:
        card = DatasetCard.model_validate(content)
    except ValidationError as error:
        return [_card_fault(path, [str(key) for key in detail["loc"]], detail["type"], detail["msg"]) for detail in error.errors()]
    if card.id != path.stem:
        return [
            CardFault(str(path), "id", f"the id is {card.id!r}, but the file has another name", "give id and file the same name")
        ]
    return card


_PLAIN_FAULTS = {
    "missing": "required, and missing",
    "string_type": "not a text",
    "string_too_short": "an empty text",
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "float_type": "not a number",
    "float_parsing": "not a number",
    "bool_type": "neither true nor false",
    "bool_parsing": "neither true nor false",
    "tuple_type": "not a list",
    "list_type": "not a list",
    "dict_type": "not a mapping of fields",
    "model_type": "not a mapping of fields",
    "string_pattern_mismatch": "not of the pattern of this field",
}
"""Pydantic's type of an error -> the fault in plain words."""
_MODELS_OF_FIELD: dict[str, type[BaseModel]] = {
    "generated": GeneratedSource,
    "layout": Layout,
    "pacs": ServerSource,
    "tables": LabelTable,
    "boxes": BoxTable,
    "sources": Source,
}


def _card_fault(path: Path, where: list[str], kind: str, message: str) -> CardFault:
    """Convert a pydantic error; the remedy is the description of the field."""
    model, description = _locate(where)
    if kind == "extra_forbidden":
        return CardFault(str(path), ".".join(where), "no such field", f"one of: {', '.join(model.model_fields)}")
    stated = "not one of the values:" if kind == "literal_error" else "not"
    text = _PLAIN_FAULTS.get(kind, message.removeprefix("Value error, ").replace("Input should be", stated))
    return CardFault(str(path), ".".join(where), text, description or "fix the card")


def _locate(where: list[str]) -> tuple[type[BaseModel], str]:
    """Return the model that contains the field at a path of keys, and the description of that field or of the nearest above it."""
    model: type[BaseModel] = DatasetCard
    description = ""
    for key in where:
        field = model.model_fields.get(key)
        description = (field.description if field else None) or description
        model = _MODELS_OF_FIELD.get(key, model)
    return model, description


def card_folders() -> tuple[Path, ...]:
    """Return the folders that contain cards: that of the package, then that of the user."""
    return FOLDER, Home.open().cards


def card_paths() -> dict[str, Path]:
    """Return id -> file of every card.

    Raises:
        BadInput: a user's card has the id of a packaged card.
    """
    paths: dict[str, Path] = {}
    for folder in card_folders():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in paths:
                raise BadInput(
                    "a packaged card already has this id", where=str(path), remedy="give your card another id and file name"
                )
            paths[path.stem] = path
    return dict(sorted(paths.items()))


def load_card(dataset_id: str) -> DatasetCard:
    """Read one card.

    Raises:
        BadInput: the card does not exist, or its fields are invalid.
    """
    path = card_paths().get(dataset_id)
    if path is None:
        user_folder = card_folders()[-1]
        raise BadInput(
            "no such dataset card",
            where=dataset_id,
            remedy=f"omnimri catalog list shows the available cards; add your own to {user_folder}",
        )
    return _require_valid(parse_card(path))


def list_cards() -> list[DatasetCard]:
    """Return all valid cards, sorted by id. An invalid one is logged and left out: it must not hide the others."""
    cards = []
    for path in card_paths().values():
        try:
            cards.append(_require_valid(parse_card(path)))
        except BadInput as error:
            logger.warning("%s", error)
    return cards


def packaged_cards() -> list[DatasetCard]:
    """Return the cards packaged with OmniMRI, sorted by id."""
    return [_require_valid(parse_card(path)) for path in sorted(FOLDER.glob("*.yaml"))]


def _require_valid(parsed: DatasetCard | list[CardFault]) -> DatasetCard:
    if isinstance(parsed, DatasetCard):
        return parsed
    if len(parsed) == 1:
        (fault,) = parsed
        raise BadInput(f"the card is invalid: {fault.sentence()}", where=fault.file, remedy=fault.remedy)
    faults = "; ".join(f"{fault.sentence()} ({fault.remedy})" for fault in parsed)
    raise BadInput(f"the card has {len(parsed)} faults: {faults}", where=parsed[0].file, remedy="correct each of them")


def filter_cards(
    cards: Iterable[DatasetCard], *, anatomy: str | None, task: str | None, access: str | None, file_format: str | None
) -> list[DatasetCard]:
    """Return the cards that match all given criteria.

    Raises:
        BadInput: a criterion has a value that no card can have.
    """
    choices = {"task": tuple(TASKS), "access": get_args(Access), "format": (*READABLE_FORMATS, *FORMATS, *OTHER_FORMATS)}
    for name, value in (("task", task), ("access", access), ("format", file_format)):
        if value is not None and value not in choices[name]:
            raise BadInput(f"no such {name}: {value}", where=f"--{name}", remedy=f"one of: {', '.join(choices[name])}")
    return [
        card
        for card in cards
        if (anatomy is None or card.anatomy == anatomy)
        and (task is None or task in card.tasks)
        and (access is None or card.access == access)
        and (file_format is None or file_format in card.formats)
    ]
