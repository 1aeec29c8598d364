"""Requests that no client should send, for tests and benchmarks: wrong forms, wrong bytes, files that lie about themselves."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
from dataclasses import dataclass

import h5py
import nibabel as nib
import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Request:
    """A body with its type; ``kind`` is for people."""

    kind: str
    content_type: str
    body: bytes


def nifti(sides: tuple[int, int, int] = (16, 16, 3)) -> bytes:
    voxels = np.arange(np.prod(sides), dtype=np.int16).reshape(sides)
    content: bytes = nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 6.0, 1.0])).to_bytes()
    return content


def asked(image: bytes | str, instruction: str = "Segment the lesion.") -> bytes:
    text = image if isinstance(image, str) else base64.b64encode(image).decode()
    return json.dumps({"dataframe_records": [{"image": text, "instruction": instruction}]}).encode()


def _claims(*sides: int) -> bytes:
    """A NIfTI header that claims so many voxels, with hardly any behind it."""
    whole = bytearray(nifti())
    struct.pack_into("<8h", whole, 40, len(sides), *sides, *[1] * (7 - len(sides)))
    return bytes(whole)


def _elsewhere() -> bytes:
    """An HDF5 file whose k-space is a link to a file of the server."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["kspace"] = h5py.ExternalLink("/etc/passwd", "/kspace")
    return stream.getvalue()


def _hollow() -> bytes:
    """An HDF5 file of a few hundred bytes that unfolds to terabytes."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("kspace", (2000, 64, 4096, 4096), np.complex64, chunks=(1, 1, 64, 64))
    return stream.getvalue()


LIES = {
    "header of 4 TB": _claims(32000, 32000, 32000),
    "negative sides": _claims(-3, -3, -3),
    "no sides": _claims(0, 0, 0),
    "gzip bomb": gzip.compress(nifti() + bytes(64 << 20)),
    "packed header of 4 TB": gzip.compress(_claims(32000, 32000, 32000)),
    "packed header of 1 GB": gzip.compress(_claims(1000, 1000, 500)),
    "cut gzip": gzip.compress(nifti())[:-20],
    "link to another file": _elsewhere(),
    "hollow HDF5": _hollow(),
    "MetaImage of another file": b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = ../../etc/passwd\n",
    "DICOM head alone": bytes(128) + b"DICM" + bytes(64),
    "pickle": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3, 3, 3), }".ljust(128, b" "),
    "name instead of content": b"/etc/passwd",
}

_names = st.sampled_from(["image", "instruction", "columns", "data", "x"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner),
    max_leaves=8,
)
_forms = st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances", "dataframe", ""])


def _rows(count: int) -> bytes:
    return json.dumps({"instances": [{"image": "", "instruction": "?"}] * count}).encode()


def damaged(flips: list[tuple[int, int]]) -> bytes:
    whole = bytearray(nifti())
    for place, value in flips:
        whole[place % 348] = value
    return bytes(whole)


MALFORMED = st.one_of(
    st.binary(max_size=200).map(lambda body: Request("bytes", "application/json", body)),
    st.sampled_from(["text/csv", "application/octet-stream", "", "application/json2", "multipart/form-data"]).map(
        lambda kind: Request("type", kind, asked(nifti()))
    ),
    st.builds(lambda form, value: Request("form", "application/json", json.dumps({form: value}).encode()), _forms, _json),
    _json.map(lambda value: Request("form", "application/json", json.dumps(value).encode())),
    st.text(max_size=60)
    .filter(lambda text: len(text) % 4 or not text.isascii())
    .map(lambda text: Request("no base64", "application/json", asked(text))),
    st.binary(max_size=400).map(lambda content: Request("no image", "application/json", asked(content))),
    st.sampled_from(sorted(LIES)).map(lambda name: Request(name, "application/json", asked(LIES[name]))),
    st.sampled_from(["../../etc/passwd", "file:///etc/passwd", "C:\\windows\\system32"]).map(
        lambda name: Request("path", "application/json", asked(name))
    ),
    st.sampled_from(["", " \n", "x" * 5000]).map(lambda text: Request("instruction", "application/json", asked(nifti(), text))),
    st.integers(5, 50).map(lambda rows: Request("rows", "application/json", _rows(rows))),
    st.integers(1000, 100_000).map(lambda depth: Request("depth", "application/json", b"[" * depth)),
)
"""Never a request that can be answered."""
DAMAGED = st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=6).map(
    lambda flips: Request("damaged header", "application/json", asked(damaged(flips)))
)
"""Images with a byte or six of the header changed: some can still be answered."""
