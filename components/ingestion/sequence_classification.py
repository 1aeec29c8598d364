"""Classify the MRI sequence of an image from the acquisition parameters and codes of its header.

Free text may name the patient and is not used. The rules in order (the first match wins; None without a match):

====  ==========================================================================  ======================
rule  header                                                                      sequence
====  ==========================================================================  ======================
1     Image Type contains ADC                                                     ADC
2     b-value above 0, or Image Type contains DIFFUSION, TRACEW or DWI            DWI
3     Angio Flag Y                                                                MRA
4     echo planar with spin echo, TE >= 40 ms                                     DWI
5     other echo planar                                                           T2*-weighted
6     TI 1500-3500 ms, TE >= 70 ms                                                T2-FLAIR
7     TI 80-260 ms, TR >= 1500 ms, no gradient echo                               STIR
8     TI 300-1450 ms, TE <= 30 ms                                                 T1-weighted
9     gradient echo, unspoiled steady state, TR <= 12 ms, flip >= 25 degrees      bSSFP
10    gradient echo, TE >= 12 ms, flip <= 40 degrees                              T2*-weighted
11    gradient echo, TE < 12 ms, TR <= 1000 ms, flip >= 5 degrees or unknown      T1-weighted
12    TR <= 1000 ms, TE <= 30 ms, no gradient echo                                T1-weighted
13    TR >= 1500 ms, TE <= 50 ms, no gradient echo                                PD-weighted
14    TR >= 1500 ms, TE >= 60 ms, no gradient echo                                T2-weighted
====  ==========================================================================  ======================

With fat saturation (Scan Options FS), rules 8 and 11-14 yield T1-FS, T2-FS and PD-FS. The bounds are those of McRobbie et al., MRI
from Picture to Proton (2017), widened to include the typical protocols of
``tests/components/ingestion/test_sequence_classification.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

SEQUENCES: tuple[str, ...] = (
    "T1-weighted",
    "T1-FS",
    "T1-weighted post-contrast",
    "T2-weighted",
    "T2-FS",
    "T2-FLAIR",
    "PD-weighted",
    "PD-FS",
    "STIR",
    "T2*-weighted",
    "SWI",
    "DWI",
    "ADC",
    "bSSFP",
    "MRA",
    "DCE",
    "perfusion",
    "BOLD",
    "quantitative map",
)
"""The controlled vocabulary of the field ``sequence``."""
_FAT_SATURATED = {"T1-weighted": "T1-FS", "T2-weighted": "T2-FS", "PD-weighted": "PD-FS"}
_ALIASES = {
    "t1": "T1-weighted",
    "t1w": "T1-weighted",
    "t1n": "T1-weighted",
    "mprage": "T1-weighted",
    "t1 weighted": "T1-weighted",
    "t2": "T2-weighted",
    "t2w": "T2-weighted",
    "t2 weighted": "T2-weighted",
    "flair": "T2-FLAIR",
    "t2f": "T2-FLAIR",
    "t2 flair": "T2-FLAIR",
    "t1c": "T1-weighted post-contrast",
    "t1ce": "T1-weighted post-contrast",
    "t1 post": "T1-weighted post-contrast",
    "t1gd": "T1-weighted post-contrast",
    "t1 weighted post contrast": "T1-weighted post-contrast",
    "contrast enhanced t1 weighted": "T1-weighted post-contrast",
    "pd": "PD-weighted",
    "pdw": "PD-weighted",
    "pd weighted": "PD-weighted",
    "pd fs": "PD-FS",
    "pdfs": "PD-FS",
    "pd weighted fs": "PD-FS",
    "t2 fs": "T2-FS",
    "t2 weighted fs": "T2-FS",
    "t1 fs": "T1-FS",
    "t1 weighted fs": "T1-FS",
    "dti": "DWI",
    "diffusion": "DWI",
    "dwi": "DWI",
    "adc": "ADC",
    "t2star": "T2*-weighted",
    "t2*": "T2*-weighted",
    "t2* weighted": "T2*-weighted",
    "swi": "SWI",
    "stir": "STIR",
    "mra": "MRA",
    "tof": "MRA",
    "cine": "bSSFP",
    "bssfp": "bSSFP",
    "dce": "DCE",
    "bold": "BOLD",
    "fmri": "BOLD",
    "asl": "perfusion",
    "perfusion": "perfusion",
}


def sequence_names() -> dict[str, str]:
    """Return every known name of a sequence -> its name in the controlled vocabulary."""
    return {**{name: name for name in SEQUENCES}, **_ALIASES}


def canonical_sequence(name: str | None) -> str | None:
    """Return a sequence name in the controlled vocabulary: ``"flair"`` -> ``"T2-FLAIR"``; None for an unknown name."""
    if not name:
        return None
    normalized = " ".join(name.lower().replace("-", " ").replace("_", " ").split())
    by_normalized_name = {sequence.lower().replace("-", " "): sequence for sequence in SEQUENCES}
    return by_normalized_name.get(normalized) or _ALIASES.get(normalized)


@dataclass(frozen=True)
class SequenceParameters:
    """Header values that the rules use; None = unknown.

    Attributes:
        repetition_ms, echo_ms, inversion_ms: TR, TE and TI in milliseconds.
        flip_deg: flip angle in degrees.
        technique: DICOM Scanning Sequence codes: SE, IR, GR, EP, RM.
        variant: DICOM Sequence Variant codes: SK, MTC, SS, TRSS, SP, MP, OSP.
        options: DICOM Scan Options codes, e.g. FS.
        image_type: values of DICOM Image Type.
        b_value: diffusion b-value in s/mm2.
        angio: whether DICOM Angio Flag is Y.
    """

    repetition_ms: float | None = None
    echo_ms: float | None = None
    inversion_ms: float | None = None
    flip_deg: float | None = None
    technique: frozenset[str] = frozenset()
    variant: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    image_type: frozenset[str] = frozenset()
    b_value: float | None = None
    angio: bool = False


def classify_sequence(parameters: SequenceParameters) -> str | None:
    """Return the sequence, one of :data:`SEQUENCES`; None if no rule matches."""
    if diffusion := classify_diffusion(parameters.image_type, parameters.b_value):
        return diffusion
    if parameters.angio:
        return "MRA"
    if parameters.echo_ms is None or parameters.repetition_ms is None:
        return None
    contrast = _classify_prepared(parameters) or _classify_unprepared(parameters)
    return _FAT_SATURATED.get(contrast, contrast) if contrast and "FS" in parameters.options else contrast


def classify_diffusion(image_type: frozenset[str], b_value: float | None) -> str | None:
    """Apply rules 1 and 2: return "ADC" or "DWI"; None for an image without diffusion weighting."""
    if any("ADC" in value.replace("_", " ").split() for value in image_type):
        return "ADC"
    return "DWI" if (b_value or 0) > 0 or image_type & {"DIFFUSION", "TRACEW", "DWI"} else None


def _classify_prepared(parameters: SequenceParameters) -> str | None:
    """Apply rules 4-8: echo planar imaging and inversion recovery."""
    assert parameters.echo_ms is not None and parameters.repetition_ms is not None
    is_gradient_echo = "GR" in parameters.technique and "SE" not in parameters.technique
    if "EP" in parameters.technique:
        return "DWI" if "SE" in parameters.technique and parameters.echo_ms >= 40 else "T2*-weighted"
    inversion = parameters.inversion_ms or 0
    if 1500 <= inversion <= 3500 and parameters.echo_ms >= 70:
        return "T2-FLAIR"
    if 80 <= inversion <= 260 and parameters.repetition_ms >= 1500 and not is_gradient_echo:
        return "STIR"
    return "T1-weighted" if 300 <= inversion <= 1450 and parameters.echo_ms <= 30 else None


def _classify_unprepared(parameters: SequenceParameters) -> str | None:
    """Apply rules 9-14: gradient and spin echo without preparation."""
    assert parameters.echo_ms is not None and parameters.repetition_ms is not None
    repetition, echo, flip = parameters.repetition_ms, parameters.echo_ms, parameters.flip_deg
    if "GR" in parameters.technique and "SE" not in parameters.technique:
        if "SS" in parameters.variant and "SP" not in parameters.variant and repetition <= 12 and (flip or 0) >= 25:
            return "bSSFP"
        if echo >= 12:
            return "T2*-weighted" if flip is not None and flip <= 40 else None
        return "T1-weighted" if repetition <= 1000 and (flip is None or flip >= 5) else None
    if repetition <= 1000:
        return "T1-weighted" if echo <= 30 else None
    if repetition < 1500:
        return None
    if echo <= 50:
        return "PD-weighted"
    return "T2-weighted" if echo >= 60 else None
