"""Header facts: what the header of a volume states about its acquisition, as a line of the prompt and as fields of the report.

Nothing in it identifies a patient, a date or a site. What the header states is not guessed in an answer, but copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.curation.table_rows import VolumeRecord
from components.curation.text.phrasings import scan_name
from components.curation.text.template import FIELD_STRENGTH
from components.ingestion.sequence_classification import canonical_sequence
from components.ingestion.volume import Volume

_ACQUIRED = "image_modality_sequence"
_MODALITIES, _PLANES = ("MR",), ("axial", "sagittal", "coronal")


@dataclass(frozen=True)
class HeaderFacts:
    """Facts of an acquisition; None = the header does not state it.

    Attributes:
        modality: DICOM Modality.
        sequence: in the controlled vocabulary.
        plane: ``"axial"``, ``"sagittal"`` or ``"coronal"``.
        field_strength_t: tesla.
        slices: number of slices.
        slice_mm: distance of their centers, mm.
    """

    modality: str | None = None
    sequence: str | None = None
    plane: str | None = None
    field_strength_t: float | None = None
    slices: int | None = None
    slice_mm: float | None = None

    @classmethod
    def of_record(cls, record: VolumeRecord) -> HeaderFacts:
        """Return the facts of a curated volume."""
        slice_mm = record.spacing_mm[0]
        return cls._of(record.modality, record.sequence, record.plane, record.field_strength_t, record.slices, slice_mm)

    @classmethod
    def of_volume(cls, volume: Volume) -> HeaderFacts:
        """Return the facts of a volume in memory."""
        header = volume.acquisition
        slice_mm = float(volume.spacing_mm[0])
        return cls._of(header.modality, header.sequence, header.plane, header.field_strength_t, len(volume.voxels), slice_mm)

    @classmethod
    def _of(
        cls, modality: str, sequence: str | None, plane: str | None, field_t: float | None, slices: int, slice_mm: float
    ) -> HeaderFacts:
        """Return the facts; of texts only words of the controlled vocabulary: any other could be a name."""
        return cls(
            modality if modality in _MODALITIES else None,
            canonical_sequence(sequence),
            plane if plane in _PLANES else None,
            field_t,
            slices,
            slice_mm,
        )

    @property
    def line(self) -> str:
        """The facts as a line of text, e.g. ``axial T1-weighted MRI, 3.0 T, 20 slices of 6.0 mm.``; empty without facts."""
        strength = f"{self.field_strength_t:.1f} T" if self.field_strength_t else ""
        slices = f"{self.slices} slices of {self.slice_mm:.1f} mm" if self.slices and self.slice_mm else ""
        name = scan_name(self.sequence, self.plane, None) if self.sequence or self.plane else ""
        facts = ", ".join(text for text in (name, strength, slices) if text)
        return f"{facts}." if facts else ""

    @property
    def fields(self) -> dict[str, str]:
        """Fields of a report that the header states, ``"section.field"`` -> text."""
        modality = "MRI" if self.modality == "MR" else None
        stated = {"modality": modality, "sequence": self.sequence, "plane": self.plane}
        fields = {f"{_ACQUIRED}.{name}": text for name, text in stated.items() if text}
        return fields | ({FIELD_STRENGTH: f"{self.field_strength_t:.1f} T"} if self.field_strength_t else {})

    def before(self, instruction: str) -> str:
        """Return an instruction after the line of the facts."""
        return f"{self.line} {instruction}" if self.line else instruction


NO_HEADER = HeaderFacts()
