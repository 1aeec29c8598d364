"""What kind of sequence an image is, from the physics and the codes of its header; free text may name the patient and is not read.

The rules, in this order (the first that answers wins; None where none does):

====  ==========================================================================  ======================
rule  header                                                                      answer
====  ==========================================================================  ======================
1     Image Type names ADC                                                        ADC
2     b-value above 0, or Image Type names DIFFUSION, TRACEW or DWI               DWI
3     Angio Flag Y                                                                MRA
4     echo planar with spin echo, TE >= 40 ms                                     DWI
5     echo planar otherwise                                                       T2*-weighted
6     TI 1500-3500 ms, TE >= 70 ms                                                T2-FLAIR
7     TI 80-260 ms, TR >= 1500 ms, no gradient echo                               STIR
8     TI 300-1450 ms, TE <= 30 ms                                                 T1-weighted
9     gradient echo, steady state not spoiled, TR <= 12 ms, flip >= 25 degrees    bSSFP
10    gradient echo, TE >= 12 ms, flip <= 40 degrees                              T2*-weighted
11    gradient echo, TE < 12 ms, TR <= 1000 ms, flip >= 5 degrees or not given    T1-weighted
12    TR <= 1000 ms, TE <= 30 ms, no gradient echo                                T1-weighted
13    TR >= 1500 ms, TE <= 50 ms, no gradient echo                                PD-weighted
14    TR >= 1500 ms, TE >= 60 ms, no gradient echo                                T2-weighted
====  ==========================================================================  ======================

Fat saturation (Scan Options FS) makes T1-FS, T2-FS and PD-FS of 8, 11-14. Bounds are those of McRobbie et al., MRI from Picture to
Proton (2017), widened so that the typical protocols of ``tests/components/ingestion/test_sequences.py`` fall inside.
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
_SATURATED = {"T1-weighted": "T1-FS", "T2-weighted": "T2-FS", "PD-weighted": "PD-FS"}
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


def canonical_sequence(name: str | None) -> str | None:
    """A sequence's name in the controlled vocabulary: ``"flair"`` -> ``"T2-FLAIR"``; None where it is not one."""
    if not name:
        return None
    plain = " ".join(name.lower().replace("-", " ").replace("_", " ").split())
    by_name = {one.lower().replace("-", " "): one for one in SEQUENCES}
    return by_name.get(plain) or _ALIASES.get(plain)


@dataclass(frozen=True)
class Timing:
    """What the rules look at; None = the header does not say.

    Attributes:
        repetition_ms, echo_ms, inversion_ms: milliseconds.
        flip_deg: degrees.
        technique: DICOM Scanning Sequence codes: SE, IR, GR, EP, RM.
        variant: DICOM Sequence Variant codes: SK, MTC, SS, TRSS, SP, MP, OSP.
        options: DICOM Scan Options codes, e.g. FS.
        image_type: DICOM Image Type.
        b_value: s/mm2.
        angio: DICOM Angio Flag is Y.
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


def classify(timing: Timing) -> str | None:
    """The sequence in the words of :data:`SEQUENCES`, or None where the header does not tell."""
    if "ADC" in timing.image_type:
        return "ADC"
    if (timing.b_value or 0) > 0 or timing.image_type & {"DIFFUSION", "TRACEW", "DWI"}:
        return "DWI"
    if timing.angio:
        return "MRA"
    if timing.echo_ms is None or timing.repetition_ms is None:
        return None
    contrast = _by_preparation(timing) or _by_readout(timing)
    return _SATURATED.get(contrast, contrast) if contrast and "FS" in timing.options else contrast


def _by_preparation(timing: Timing) -> str | None:
    """Rules 4-8: echo planar and inversion."""
    assert timing.echo_ms is not None and timing.repetition_ms is not None
    gradient = "GR" in timing.technique and "SE" not in timing.technique
    if "EP" in timing.technique:
        return "DWI" if "SE" in timing.technique and timing.echo_ms >= 40 else "T2*-weighted"
    inversion = timing.inversion_ms or 0
    if 1500 <= inversion <= 3500 and timing.echo_ms >= 70:
        return "T2-FLAIR"
    if 80 <= inversion <= 260 and timing.repetition_ms >= 1500 and not gradient:
        return "STIR"
    return "T1-weighted" if 300 <= inversion <= 1450 and timing.echo_ms <= 30 else None


def _by_readout(timing: Timing) -> str | None:
    """Rules 9-14: gradient and spin echo without preparation."""
    assert timing.echo_ms is not None and timing.repetition_ms is not None
    repetition, echo, flip = timing.repetition_ms, timing.echo_ms, timing.flip_deg
    if "GR" in timing.technique and "SE" not in timing.technique:
        if "SS" in timing.variant and "SP" not in timing.variant and repetition <= 12 and (flip or 0) >= 25:
            return "bSSFP"
        if echo >= 12:
            return "T2*-weighted" if flip is not None and flip <= 40 else None
        return "T1-weighted" if repetition <= 1000 and (flip is None or flip >= 5) else None
    if repetition <= 1000:
        return "T1-weighted" if echo <= 30 else None
    if repetition < 1500:
        return None
    return "PD-weighted" if echo <= 50 else "T2-weighted" if echo >= 60 else None
