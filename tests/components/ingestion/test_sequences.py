"""The sequence that the rules tell from the header, for protocols of known studies and usual ones; values are not quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingestion.sequences import SEQUENCES, Timing, canonical_sequence, classify

SE, GR, EP, IR = "SE", "GR", "EP", "IR"
PROTOCOLS: tuple[tuple[str, Timing, str], ...] = (
    ("ADNI-2, 3 T MPRAGE (Siemens)", Timing(2300, 2.98, 900, 9, frozenset({GR, IR}), frozenset({"SP", "MP"})), "T1-weighted"),
    ("ADNI-2, 3 T IR-FSPGR (GE)", Timing(7.3, 3.0, 400, 11, frozenset({GR, IR})), "T1-weighted"),
    ("ADNI-3, 3 T FLAIR SPACE", Timing(4800, 441, 1650, 120, frozenset({SE, IR})), "T2-FLAIR"),
    ("ADNI-3, 3 T T2* GRE", Timing(650, 20, None, 20, frozenset({GR}), frozenset({"SP"})), "T2*-weighted"),
    ("HCP-YA, T1w MPRAGE", Timing(2400, 2.14, 1000, 8, frozenset({GR, IR})), "T1-weighted"),
    ("HCP-YA, T2w SPACE", Timing(3200, 565, None, None, frozenset({SE})), "T2-weighted"),
    ("HCP-YA, diffusion, b 3000", Timing(5520, 89.5, None, 78, frozenset({EP, SE}), b_value=3000), "DWI"),
    ("HCP-YA, fMRI, gradient-echo EPI", Timing(720, 33.1, None, 52, frozenset({EP, GR})), "T2*-weighted"),
    ("IXI, Guys, T2 TSE", Timing(8178.34, 100, None, 90, frozenset({SE})), "T2-weighted"),
    ("IXI, Guys, PD TSE", Timing(8178.34, 8, None, 90, frozenset({SE})), "PD-weighted"),
    ("IXI, Guys, T1", Timing(9.813, 4.603, None, 8, frozenset({GR})), "T1-weighted"),
    ("OAI, sagittal 3D DESS", Timing(16.3, 4.7, None, 25, frozenset({GR}), frozenset({"SS", "SP"})), "T1-weighted"),
    ("OAI, sagittal IW TSE FS", Timing(3200, 30, None, 180, frozenset({SE}), options=frozenset({"FS"})), "PD-FS"),
    ("fastMRI knee, coronal PD", Timing(2750, 27, None, 140, frozenset({SE})), "PD-weighted"),
    ("fastMRI knee, coronal PD FS", Timing(2870, 33, None, 140, frozenset({SE}), options=frozenset({"FS"})), "PD-FS"),
    ("PI-RADS prostate, axial T2 TSE", Timing(4000, 101, None, 160, frozenset({SE})), "T2-weighted"),
    ("PROSTATEx, ADC map", Timing(2700, 63, None, 90, frozenset({EP, SE}), image_type=frozenset({"DERIVED", "ADC"})), "ADC"),
    ("PROSTATEx, DWI trace", Timing(2700, 63, None, 90, frozenset({EP, SE}), image_type=frozenset({"TRACEW"})), "DWI"),
    ("ACDC, cine bSSFP", Timing(3.0, 1.5, None, 50, frozenset({GR}), frozenset({"SK", "SS"})), "bSSFP"),
    ("SPIDER spine, sagittal T1 TSE", Timing(600, 10, None, 150, frozenset({SE})), "T1-weighted"),
    ("SPIDER spine, sagittal T2 TSE", Timing(3500, 105, None, 150, frozenset({SE})), "T2-weighted"),
    ("STIR, 1.5 T spine", Timing(4000, 60, 150, 150, frozenset({SE, IR})), "STIR"),
    ("breast, T1 fat-saturated FLASH", Timing(4.5, 1.7, None, 10, frozenset({GR}), frozenset({"SP"}), frozenset({"FS"})), "T1-FS"),
    ("TOF angiography", Timing(22, 3.7, None, 18, frozenset({GR}), angio=True), "MRA"),
    ("SWI, 3 T", Timing(28, 20, None, 15, frozenset({GR}), frozenset({"SP"})), "T2*-weighted"),
    ("T1 spin echo, brain 1.5 T", Timing(500, 14, None, 90, frozenset({SE})), "T1-weighted"),
)  # fmt: skip


@pytest.mark.parametrize(("timing", "kind"), [(t, kind) for _, t, kind in PROTOCOLS], ids=[name for name, _, _ in PROTOCOLS])
def test_a_protocol_is_what_its_users_call_it(timing: Timing, kind: str) -> None:
    assert classify(timing) == kind


@pytest.mark.parametrize(
    "timing",
    [
        Timing(),
        Timing(500, None),
        Timing(None, 90),
        Timing(1200, 20, None, 90, frozenset({SE})),
        Timing(3000, 55, None, 90, frozenset({SE})),
    ],
)
def test_where_the_header_does_not_tell_nothing_is_said(timing: Timing) -> None:
    assert classify(timing) is None


times = st.one_of(st.none(), st.floats(0.1, 20_000))
flips = st.one_of(st.none(), st.floats(0, 180))
codes = st.frozensets(st.sampled_from([SE, GR, EP, IR, "RM"]))


@given(st.builds(Timing, times, times, times, flips, codes, codes, st.just(frozenset({"FS"}))))
def test_every_answer_is_a_word_of_the_vocabulary(timing: Timing) -> None:
    assert classify(timing) in (None, *SEQUENCES)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("FLAIR", "T2-FLAIR"),
        ("t1ce", "T1-weighted post-contrast"),
        ("PD_FS", "PD-FS"),
        ("T1-weighted", "T1-weighted"),
        ("T2*", "T2*-weighted"),
        ("Doe", None),
        (None, None),
    ],
)
def test_other_names_of_a_sequence_are_brought_to_one(name: str | None, canonical: str | None) -> None:
    assert canonical_sequence(name) == canonical
