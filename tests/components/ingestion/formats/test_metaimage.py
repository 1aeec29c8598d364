"""MetaImage files as ITK and its users write them: each that cannot be read is refused with its own cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from tests.helpers.real_world.common import make_card, ramp

HEADER = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementSpacing = 1 1 2\n"
VALUES = np.arange(64, dtype=np.int16).tobytes()


def test_oblique_long_and_single_slice_images_have_simpleitks_values_and_spacing(tmp_path: Path) -> None:
    cosine, sine = np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))
    values = {"oblique": ramp((16, 28, 24)), "long": ramp((16, 28, 24), 1).astype(np.int64), "slice": ramp((1, 28, 24), 2)}
    (tmp_path / "source").mkdir()
    for name, array in values.items():
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.5, 3.0))
        if name == "oblique":
            image.SetDirection((1, 0, 0, 0, cosine, -sine, 0, sine, cosine))
        SimpleITK.WriteImage(image, str(tmp_path / "source" / f"{name}_t2w.mha"))
    card = make_card(formats=("MetaImage",), layout={"patient": "([a-z]+)_", "sequences": {"t2w": "T2-weighted"}})
    report = ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    volumes = [read_volume(tmp_path / "data", series, card) for series in list_series(tmp_path / "data", card.id)]
    assert not report.quarantined and report.patients == 3
    assert {volume.voxels.tobytes() for volume in volumes} == {array.astype(np.float32).tobytes() for array in values.values()}
    assert all(volume.spacing_mm == pytest.approx((3.0, 0.5, 0.5)) for volume in volumes)


FAULTS: dict[str, tuple[str, str]] = {
    "a data file in another case": ("ElementDataFile = DATA.RAW\n", "differs in upper and lower case"),
    "no data file": ("ElementDataFile = nothing.raw\n", "not beside it"),
    "a data file elsewhere": ("ElementDataFile = ../data.raw\n", "not beside it"),
    "a file for each slice": ("ElementDataFile = LIST\ndata.raw\ndata.raw\n", "a file for each slice"),
    "numbered files": ("ElementDataFile = s%02d.raw 1 4 1\n", "a file for each slice"),
    "no data field": ("", "without ElementDataFile"),
    "vectors": ("ElementNumberOfChannels = 3\nElementDataFile = data.raw\n", "colors or vectors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_own_text(tmp_path: Path, fault: str) -> None:
    more, reason = FAULTS[fault]
    (tmp_path / "data.raw").write_bytes(VALUES * 3)
    (tmp_path / "image.mhd").write_text(HEADER + more)
    with pytest.raises(BadInput, match=reason):
        read_path(tmp_path / "image.mhd")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("DimSize = 4 4 400", "fewer voxels"),
        ("ElementSpacing = 1 1 900", "implausible size"),
        ("ElementSpacing = 1 1 0", "spacing|size"),
        ("ElementSpacing = 1 1 -2", "spacing|size"),
        ("DimSize = 4 4 x", "damaged MetaImage header"),
        ("ElementType = MET_FOO", "damaged MetaImage header"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    field = line.partition(" =")[0]
    lines = [line if old.startswith(f"{field} =") else old for old in HEADER.splitlines()]
    (tmp_path / "image.mha").write_bytes("\n".join([*lines, "ElementDataFile = LOCAL\n"]).encode() + VALUES)
    with pytest.raises(BadInput, match=reason):
        read_path(tmp_path / "image.mha")


def test_a_refused_header_and_its_data_file_are_one_entry(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ramp((16, 28, 24))), str(tmp_path / "source" / "good_t2w.mha"))
    (tmp_path / "source" / "case_t2w.mhd").write_text(HEADER + "ElementDataFile = case_t2w.raw\n")
    (tmp_path / "source" / "CASE_T2W.RAW").write_bytes(VALUES)
    report = ingest(make_card(formats=("MetaImage",)), tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert len(report.quarantined) == 1 and "upper and lower case" in report.quarantined[0].reason
