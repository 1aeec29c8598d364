"""The rows of the curated tables: one Parquet file each, validated when read and when written."""

from __future__ import annotations

from math import hypot
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from components.settings import MaskKind, TaskName

Split = Literal["train", "validation", "test"]


class Row(BaseModel):
    """A frozen table row."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VolumeRecord(Row):
    """One curated volume (table ``volumes.parquet``). Its voxels are in the store under ``volume_id``."""

    volume_id: str = Field(description="hex digest of (source md5, curation settings, code version): also its name in the store")
    dataset_id: str
    patient_id: str = Field(description="pseudonym")
    series_id: str
    visit: str = Field(
        default="", description="pseudonym of the patient's visit: series of one patient with the same visit are a study"
    )
    split: Split
    synthetic: bool
    source_files: list[str] = Field(description="relative to data/")
    source_md5: str
    reader: str
    slices: int = Field(description="D")
    rows: int = Field(description="H, pixels")
    columns: int = Field(description="W, pixels")
    affine: list[float] = Field(description="16 numbers, row-major: index (d, h, w, 1) -> RAS+ mm of the stored array")
    intensity_scale: float = Field(description="99.5th percentile of the source magnitude; stored voxels are source / this")
    voxel_minimum: float
    voxel_maximum: float
    voxel_deviation: float
    finite: bool
    neighbour_correlation: float | None = Field(
        default=None, description="of neighboring pixels of the source, the lower of rows and columns; None = a constant image"
    )
    has_kspace: bool = Field(
        description="k-space in the same scale is in the store: 'kspace' (D, H, W) of one coil, or 'coils' and 'sensitivities' "
        "(D, C, H, W) of several"
    )
    coils: int = Field(default=1, description="C, virtual coils of the k-space in the store")
    has_labels: bool = Field(description="array 'labels' (D, H, W) uint8 is in the store")
    label_values: list[int] = Field(description="non-zero label values present")
    annotated_on_tissue: float | None = Field(
        default=None, description="share of labeled (else boxed) pixels that show signal; None = no annotation"
    )
    modality: str
    sequence: str | None
    plane: str | None
    anatomy: str | None
    repetition_time_ms: float | None
    echo_time_ms: float | None
    inversion_time_ms: float | None
    flip_angle_deg: float | None
    field_strength_t: float | None
    vendor: str | None
    scanner: str | None
    sex: str | None
    age_years: float | None
    lesion: bool | None = Field(description="a lesion is present; None = unknown")
    content_md5: str = Field(description="of the stored voxels, labels and k-space: the same for equal content only")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (slice, row, column), mm."""
        slice_mm, row_mm, column_mm = (hypot(*self.affine[axis:12:4]) for axis in range(3))
        return slice_mm, row_mm, column_mm


class MeasureRecord(Row):
    """The measurements of one labeled structure, on which the words of sections 3 to 5 are based."""

    name: str = Field(description="of the structure or lesion, lower case")
    label_value: int | None = Field(description="None = known by boxes only")
    lesion: bool
    count: int | None = Field(description="number of lesions (curation.measure.regions.split_lesions)")
    volume_ml: float | None = Field(description="of all voxels, milliliters; None = known by boxes only")
    size_mm: float = Field(description="longest side of the bounding box of the structure or largest lesion, millimeters")
    side: str | None = Field(
        description="left, right, bilateral or midline; None = no lesion, or the middle of the body is not in view"
    )
    inside: str | None = Field(description="the labeled structure around the largest lesion")
    signal: float | None = Field(description="median signal over that of the reference tissue")
    reference: str | None = Field(description="the reference tissue")


class DescriptionRecord(Row):
    """Paired vision-text data: the template of the paper's Fig. 2 (19 fields), one row per volume (``descriptions.parquet``)."""

    volume_id: str
    fields: dict[str, str] = Field(description="'section.field' -> text, every name of Fig. 2, '' = unknown")
    provenance: dict[str, str] = Field(description="'section.field' -> header | label | report | statistics | vlm | card | none")
    text: str = Field(description="the fields as one paragraph, for the contrastive and next-token losses")
    phrasings: list[str] = Field(default_factory=list, description="the same fields in other natural wordings")
    measures: list[MeasureRecord] = Field(default_factory=list, description="the measurements behind the words")
    vlm: str | None = Field(default=None, description="digest of the model and prompt that filled the fields of provenance vlm")


class BoxRecord(Row):
    """A box in the normalized form of the text: integers 0-255 per axis, half-open."""

    row0: int
    col0: int
    row1: int
    col1: int
    label: str


class VolumeBoxRecord(BoxRecord):
    """A box of a volume: also its slices, integers 0-255 of the volume's own slices, half-open."""

    slice0: int
    slice1: int


class InstructionRecord(Row):
    """Instruction-response data, Table 1 of the paper (``instructions.parquet``)."""

    sample_id: str = Field(description="hex digest, unique")
    volume_id: str
    patient_id: str
    split: Split
    task: TaskName
    slice_index: int
    instruction: str = Field(description="user text; the image precedes it as <image>")
    response: str = Field(
        description="the required answer: '<image>' (reconstruction), '<seg>' (segmentation), box text or 'no lesion' "
        "(detection), 'yes' / 'no' first (diagnosis), report text (report)"
    )
    held_out_phrasing: bool = Field(description="a phrasing that is excluded from training")
    structure: str | None = Field(default=None, description="segmentation: name of the structure")
    label_value: int | None = Field(default=None, description="segmentation: its value in 'labels'")
    label_values: list[int] = Field(
        default_factory=list, description="detection, diagnosis: values of the findings in 'labels'; empty = not labeled"
    )
    acceleration: int | None = Field(default=None, description="reconstruction: undersampling factor")
    centre_fraction: float | None = Field(default=None, description="reconstruction: fully sampled share of lines")
    mask_seed: int | None = Field(default=None, description="reconstruction: seed of the mask")
    mask_kind: MaskKind = Field(default="random", description="reconstruction: kind of the mask")
    boxes: list[BoxRecord] = Field(default_factory=list, description="detection: the truth")
    positive: bool | None = Field(default=None, description="diagnosis: the truth")
    differential: list[str] = Field(default_factory=list, description="diagnosis: differential considerations")


class VolumeInstructionRecord(Row):
    """An instruction about a whole volume, or about one volume of a study (``volume_instructions.parquet``)."""

    sample_id: str = Field(description="hex digest, unique")
    volume_id: str = Field(description="of the volume in question")
    scope: Literal["volume", "study"]
    series: list[str] = Field(description="volume ids of the images in their order; of a volume, itself")
    patient_id: str
    split: Split
    task: TaskName
    instruction: str
    response: str = Field(description="as of instructions about slices; boxes have six edges")
    held_out_phrasing: bool = Field(description="a phrasing that is excluded from training")
    included: bool = Field(default=True, description="False = surplus of balancing")
    structure: str | None = Field(default=None, description="segmentation: name of the structure")
    finding: str | None = Field(default=None, description="detection, diagnosis: name of the finding")
    label_value: int | None = Field(default=None, description="segmentation: its value in 'labels'")
    label_values: list[int] = Field(default_factory=list, description="values of the findings in 'labels'; empty = not labeled")
    acceleration: int | None = Field(default=None, description="reconstruction: undersampling factor")
    centre_fraction: float | None = Field(default=None, description="reconstruction: fully sampled share of lines")
    mask_seed: int | None = Field(default=None, description="reconstruction: seed of the mask of all slices")
    mask_kind: MaskKind = Field(default="random", description="reconstruction: kind of the mask")
    boxes: list[VolumeBoxRecord] = Field(default_factory=list, description="detection: the truth")
    positive: bool | None = Field(default=None, description="diagnosis: the truth")


class SplitRecord(Row):
    """The split of a patient (``splits.parquet``)."""

    patient_id: str
    split: Split


class CurationReport(Row):
    """Result of one curation."""

    digest: str = Field(description="of the curated corpus: tables and volume ids")
    volumes_total: int
    volumes_new: int
    volumes_reused: int
    volumes_removed: int
    volumes_duplicate: int = Field(default=0, description="series skipped because another has the same content (corpus.json)")
    volumes_unreadable: int = Field(default=0, description="ingested volumes that cannot be read and are left out (corpus.json)")
    instructions: int
    descriptions: int
    vlm_answered: int = Field(default=0, description="volumes that a vision-language model was queried about in this run")
    vlm_reused: int = Field(default=0, description="volumes whose answer was cached")
    vlm_volumes_per_s: float = Field(default=0.0, description="rate of the queries of this run; visual/runs.jsonl lists every run")
    seconds: float
