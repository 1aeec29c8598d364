"""Sequence classification of real files, published protocols and typical protocols."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingestion.acquisition_headers import acquisition_from_dicom
from components.ingestion.sequence_classification import SEQUENCES, SequenceParameters, canonical_sequence, classify_sequence

SE, GR, EP, IR = "SE", "GR", "EP", "IR"
NIBABEL, PYDICOM = (Path(module.__file__).parent for module in (nibabel, pydicom))
FILES: tuple[tuple[Path, str, str], ...] = (
    (NIBABEL / "nicom/tests/data/0.dcm", "CBU_DTI_64D_1A", "DWI"),
    (NIBABEL / "nicom/tests/data/siemens_dwi_1000.dcm.gz", "CBU_DTI_64D_1A", "DWI"),
    (NIBABEL / "nicom/tests/data/csa_slice_norm.dcm", "RESTING_STATE_Yerkes", "T2*-weighted"),
    (NIBABEL / "nicom/tests/data/slicethickness_empty_string.dcm", "TOF_3D_multi-slab", "MRA"),
    (PYDICOM / "data/test_files/examples_overlay.dcm", "t1_vibe_fs_tra_bh_dyn", "T1-FS"),
)
"""Scanners' own files, with the name that the operator gave the protocol: the label, which the rules do not see."""

PUBLISHED: tuple[tuple[str, SequenceParameters, str, str], ...] = (
    (
        "MPRAGE, Trio",
        SequenceParameters(2250, 2.98, 900, 9, frozenset({GR, IR}), frozenset({"SP", "MP", "OSP"}), frozenset({"IR", "PFP"})),
        "T1-weighted",
        "OpenNeuro ds000117, acq-mprage_T1w.json",
    ),
    (
        "MPRAGE, Prisma",
        SequenceParameters(3000, 2.56, 1100, 7, frozenset({GR, IR}), frozenset({"SK", "SP", "MP"}), frozenset({"IR"})),
        "T1-weighted",
        "huggingface.co/datasets/Fudan-fMRI/fMRI-Shape, sub-0008_t1w_T1w.json",
    ),
    (
        "T2 SPACE, Prisma",
        SequenceParameters(3200, 563, None, 120, frozenset({SE}), frozenset({"SK", "SP"}), frozenset({"PFP"})),
        "T2-weighted",
        "huggingface.co/datasets/Fudan-fMRI/fMRI-Shape, sub-0011_t2w_T2w.json",
    ),
    (
        "fMRI, Prisma",
        SequenceParameters(800, 37, None, 52, frozenset({EP}), frozenset({"SK"}), frozenset({"FS"})),
        "T2*-weighted",
        "huggingface.co/datasets/Fudan-fMRI/fMRI-Shape, sub-0004_task-shape_run-22_bold.json",
    ),
    (
        "MPRAGE, Allegra",
        SequenceParameters(2500, 3.93, 900, 8),
        "T1-weighted",
        "huggingface.co/datasets/xenificity/FlankerTask, T1w.json",
    ),
    (
        "T1 turbo gradient echo, Philips Intera 1.5 T",
        SequenceParameters(8.1, 3.7, 764, 8),
        "T1-weighted",
        "OpenNeuro ds001378, description",
    ),
    (
        "diffusion EPI, Philips Intera 1.5 T",
        SequenceParameters(9394, 89, technique=frozenset({EP}), b_value=1000),
        "DWI",
        "OpenNeuro ds001378, description",
    ),
    (
        "HCP young adult, resting state, gradient-echo EPI",
        SequenceParameters(720, 33.1, None, 52, frozenset({EP, GR})),
        "T2*-weighted",
        "humanconnectome.org/hcp-protocols-ya-3t-imaging",
    ),
    (
        "psychosis HCP, T2w turbo spin echo SPACE",
        SequenceParameters(3200, 564, technique=frozenset({SE})),
        "T2-weighted",
        "10.1016/j.neuroimage.2021.118439, table 4",
    ),
    (
        "psychosis HCP, resting-state fMRI",
        SequenceParameters(800, 37, None, 52, frozenset({EP})),
        "T2*-weighted",
        "10.1016/j.neuroimage.2021.118439, table 4",
    ),
    (
        "prostate, T2 turbo spin echo, Verio",
        SequenceParameters(5800, 100, technique=frozenset({SE})),
        "T2-weighted",
        "authorea.com/users/419517/articles/525992, methods",
    ),
    (
        "prostate, diffusion up to b 1500, Verio",
        SequenceParameters(3900, 75, b_value=1500),
        "DWI",
        "authorea.com/users/419517/articles/525992, methods",
    ),
)
"""(Name, header, what its publishers call it, where the values stand). Codes are given only where the source gives them."""

TYPICAL: tuple[tuple[str, SequenceParameters, str], ...] = (
    (
        "ADNI-2, 3 T MPRAGE (Siemens)",
        SequenceParameters(2300, 2.98, 900, 9, frozenset({GR, IR}), frozenset({"SP", "MP"})),
        "T1-weighted",
    ),
    ("ADNI-2, 3 T IR-FSPGR (GE)", SequenceParameters(7.3, 3.0, 400, 11, frozenset({GR, IR})), "T1-weighted"),
    ("ADNI-3, 3 T FLAIR SPACE", SequenceParameters(4800, 441, 1650, 120, frozenset({SE, IR})), "T2-FLAIR"),
    ("ADNI-3, 3 T T2* GRE", SequenceParameters(650, 20, None, 20, frozenset({GR}), frozenset({"SP"})), "T2*-weighted"),
    ("HCP-YA, T1w MPRAGE", SequenceParameters(2400, 2.14, 1000, 8, frozenset({GR, IR})), "T1-weighted"),
    ("HCP-YA, T2w SPACE", SequenceParameters(3200, 565, None, None, frozenset({SE})), "T2-weighted"),
    ("HCP-YA, diffusion, b 3000", SequenceParameters(5520, 89.5, None, 78, frozenset({EP, SE}), b_value=3000), "DWI"),
    ("IXI, Guys, T2 TSE", SequenceParameters(8178.34, 100, None, 90, frozenset({SE})), "T2-weighted"),
    ("IXI, Guys, PD TSE", SequenceParameters(8178.34, 8, None, 90, frozenset({SE})), "PD-weighted"),
    ("IXI, Guys, T1", SequenceParameters(9.813, 4.603, None, 8, frozenset({GR})), "T1-weighted"),
    ("OAI, sagittal 3D DESS", SequenceParameters(16.3, 4.7, None, 25, frozenset({GR}), frozenset({"SS", "SP"})), "T1-weighted"),
    ("OAI, sagittal IW TSE FS", SequenceParameters(3200, 30, None, 180, frozenset({SE}), options=frozenset({"FS"})), "PD-FS"),
    ("fastMRI knee, coronal PD", SequenceParameters(2750, 27, None, 140, frozenset({SE})), "PD-weighted"),
    ("fastMRI knee, coronal PD FS", SequenceParameters(2870, 33, None, 140, frozenset({SE}), options=frozenset({"FS"})), "PD-FS"),
    ("PI-RADS prostate, axial T2 TSE", SequenceParameters(4000, 101, None, 160, frozenset({SE})), "T2-weighted"),
    (
        "PROSTATEx, ADC map",
        SequenceParameters(2700, 63, None, 90, frozenset({EP, SE}), image_type=frozenset({"DERIVED", "ADC"})),
        "ADC",
    ),
    ("PROSTATEx, DWI trace", SequenceParameters(2700, 63, None, 90, frozenset({EP, SE}), image_type=frozenset({"TRACEW"})), "DWI"),
    ("ACDC, cine bSSFP", SequenceParameters(3.0, 1.5, None, 50, frozenset({GR}), frozenset({"SK", "SS"})), "bSSFP"),
    ("SPIDER spine, sagittal T1 TSE", SequenceParameters(600, 10, None, 150, frozenset({SE})), "T1-weighted"),
    ("SPIDER spine, sagittal T2 TSE", SequenceParameters(3500, 105, None, 150, frozenset({SE})), "T2-weighted"),
    ("STIR, 1.5 T spine", SequenceParameters(4000, 60, 150, 150, frozenset({SE, IR})), "STIR"),
    (
        "breast, T1 fat-saturated FLASH",
        SequenceParameters(4.5, 1.7, None, 10, frozenset({GR}), frozenset({"SP"}), frozenset({"FS"})),
        "T1-FS",
    ),
    ("TOF angiography", SequenceParameters(22, 3.7, None, 18, frozenset({GR}), angio=True), "MRA"),
    ("SWI, 3 T", SequenceParameters(28, 20, None, 15, frozenset({GR}), frozenset({"SP"})), "T2*-weighted"),
    ("T1 spin echo, brain 1.5 T", SequenceParameters(500, 14, None, 90, frozenset({SE})), "T1-weighted"),
)


@pytest.mark.parametrize(("path", "protocol", "kind"), FILES, ids=[path.name for path, _, _ in FILES])
def test_a_scanner_file_is_classified_as_its_protocol_name_says(path: Path, protocol: str, kind: str) -> None:
    content = path.read_bytes()
    header = pydicom.dcmread(BytesIO(gzip.decompress(content) if path.suffix == ".gz" else content), stop_before_pixels=True)
    assert header.ProtocolName == protocol
    assert acquisition_from_dicom(header, np.eye(4), None).sequence == kind


@pytest.mark.parametrize(("timing", "kind"), [(t, kind) for _, t, kind, _ in PUBLISHED], ids=[name for name, *_ in PUBLISHED])
def test_a_published_protocol_is_classified_as_published(timing: SequenceParameters, kind: str) -> None:
    assert classify_sequence(timing) == kind


@pytest.mark.parametrize(("timing", "kind"), [(t, kind) for _, t, kind in TYPICAL], ids=[name for name, _, _ in TYPICAL])
def test_a_typical_protocol_is_classified_correctly(timing: SequenceParameters, kind: str) -> None:
    assert classify_sequence(timing) == kind


@pytest.mark.parametrize(
    "timing",
    [
        SequenceParameters(),
        SequenceParameters(500, None),
        SequenceParameters(None, 90),
        SequenceParameters(1200, 20, None, 90, frozenset({SE})),
        SequenceParameters(3000, 55, None, 90, frozenset({SE})),
    ],
)
def test_an_inconclusive_header_yields_no_sequence(timing: SequenceParameters) -> None:
    assert classify_sequence(timing) is None


times = st.one_of(st.none(), st.floats(0.1, 20_000))
flips = st.one_of(st.none(), st.floats(0, 180))
codes = st.frozensets(st.sampled_from([SE, GR, EP, IR, "RM"]))


@given(st.builds(SequenceParameters, times, times, times, flips, codes, codes, st.just(frozenset({"FS"}))))
def test_every_result_is_in_the_vocabulary(timing: SequenceParameters) -> None:
    assert classify_sequence(timing) in (None, *SEQUENCES)


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
def test_aliases_map_to_the_canonical_name(name: str | None, canonical: str | None) -> None:
    assert canonical_sequence(name) == canonical
