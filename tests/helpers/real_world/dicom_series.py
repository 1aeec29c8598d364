"""DICOM series as public bug reports describe them: edited headers, other transfer syntaxes, files without a preamble."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.helpers import dicom_files
from tests.helpers.real_world.common import ramp

GE, PHILIPS, SIEMENS = "GE MEDICAL SYSTEMS", "Philips Medical Systems", "SIEMENS"


def voxels(slices: int = 4, seed: int = 0, rows: int = 28, columns: int = 24) -> NDArray[np.uint16]:
    """Return values (slices, rows, columns) that differ along each axis."""
    return np.ascontiguousarray(ramp((rows, columns, slices), seed).transpose(2, 0, 1)).astype(np.uint16)


def write_stack(folder: Path, name: str, values: NDArray[Any], **attributes: Any) -> list[Path]:
    """Write a series of its own (UIDs from the name), signed if the values are; attributes by keyword, None removes one."""
    uids = {f"{level}InstanceUID": generate_uid(entropy_srcs=[level, name]) for level in ("Study", "Series")}
    layout = {"BitsAllocated": 8 * values.dtype.itemsize, "PixelRepresentation": int(values.dtype.kind == "i")}
    layout["BitsStored"], layout["HighBit"] = layout["BitsAllocated"], layout["BitsAllocated"] - 1
    return dicom_files.write_series(folder, name, values, **{**uids, **layout, **attributes})


def edit(paths: Path | list[Path], change: Callable[[Dataset], object]) -> None:
    """Change the data sets of files."""
    for path in [paths] if isinstance(paths, Path) else paths:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def add_private(group: int, creator: str, element: int, vr: str, value: Any) -> Callable[[Dataset], object]:
    """Return an edit that adds a private element; without a creator, at its usual place."""

    def change(dataset: Dataset) -> None:
        if creator:
            dataset.private_block(group, creator, create=True).add_new(element, vr, value)
        else:
            dataset.add_new((group, 0x1000 | element), vr, value)

    return change


def transcode(path: Path, name: str) -> None:
    """Rewrite an explicit little endian file in another transfer syntax: a key of :data:`SYNTAXES`."""
    dataset = pydicom.dcmread(path)
    syntax = SYNTAXES[name]
    if name in ("rle", "j2k", "jls"):
        stored, dataset.BitsStored, dataset.HighBit = int(dataset.BitsStored), dataset.BitsAllocated, dataset.BitsAllocated - 1
        dataset.compress(syntax)  # all allocated bits, also those above the stored ones
        dataset.BitsStored, dataset.HighBit = stored, stored - 1
        dataset.save_as(path)
    elif name == "jpeg":
        dataset.PixelData = encapsulate([_encode_jpeg_lossless(path)])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    elif syntax is not None:
        if name == "big endian":
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, implicit_vr=name == "implicit", little_endian=name != "big endian")


SYNTAXES = {
    "explicit": None,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jls": JPEGLSLossless,
    "j2k": JPEG2000Lossless,
    "jpeg": JPEGLosslessSV1,
}


def _encode_jpeg_lossless(path: Path) -> bytes:
    """Return the words of a single-frame image as a JPEG lossless stream, encoded by GDCM."""
    dataset = pydicom.dcmread(path)
    words = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
    writer, target = SimpleITK.ImageFileWriter(), path.with_suffix(".encoded.dcm")
    writer.SetFileName(str(target))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(SimpleITK.GetImageFromArray(words))
    encoded = pydicom.dcmread(target)
    assert encoded.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    target.unlink()
    return next(generate_frames(encoded.PixelData, number_of_frames=1))


def write_mixed_enhanced(path: Path, states_component: bool = True) -> NDArray[np.uint16]:
    """Write an enhanced image whose header says MIXED: shuffled frames of magnitudes, each with its own slope, and of phases.

    Returns:
        The stored magnitudes (slices, rows, columns); the slope of slice ``k`` is ``k + 1``.
    """
    magnitudes = voxels(6)
    order = list(product(range(6), ("MAGNITUDE", "PHASE")))
    np.random.default_rng(3).shuffle(order)
    order = [(int(place), str(component)) for place, component in order]
    phases = (magnitudes * 3 % 4096).astype(np.uint16)
    frames = [
        {"plane": (magnitudes if component == "MAGNITUDE" else phases)[place], "offset": 4.0 * place} for place, component in order
    ]
    dicom_files.write_enhanced(path, frames, ComplexImageComponent="MIXED", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])

    def change(dataset: Dataset) -> None:
        for groups, (place, component) in zip(dataset.PerFrameFunctionalGroupsSequence, order, strict=True):
            kind, scale = Dataset(), Dataset()
            kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
            if states_component:
                kind.ComplexImageComponent = component
            is_magnitude = component == "MAGNITUDE"
            scale.RescaleSlope, scale.RescaleIntercept = (str(place + 1), "0") if is_magnitude else ("1", "-2048")
            groups.MRImageFrameTypeSequence, groups.PixelValueTransformationSequence = [kind], [scale]

    edit(path, change)
    return magnitudes
