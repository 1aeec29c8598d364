"""An image format as a user would add it: a magic, a line of JSON (shape, spacing in mm, origin), raw little-endian float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.formats.image_files import ImageFileFormat
from components.registries import FORMATS

MAGIC = b"TOYMRI1\0"


class ToyFormat(ImageFileFormat):
    """Voxels after a header of one line."""

    name = "toy"

    def sniff(self, head: bytes, path: Path) -> bool:
        return head.startswith(MAGIC)

    def load(self, path: Path) -> Any:
        header, _, body = path.read_bytes().removeprefix(MAGIC).partition(b"\n")
        fields = json.loads(header)
        if len(body) != 4 * np.prod(fields["shape"], dtype=object):
            raise BadInput("another number of voxels than the header claims", where=path.name, remedy="get the file again")
        affine = np.diag([*fields["spacing_mm"], 1.0])
        affine[:3, 3] = fields["origin_mm"]
        return nib.Nifti1Image(np.frombuffer(body, "<f4").reshape(fields["shape"]), affine)


FORMAT = ToyFormat()
FORMATS.add("toy", f"{__name__}:FORMAT")


def save(path: Path, values: NDArray[np.float32], spacing_mm: tuple[float, ...] = (1.0, 1.0, 4.0), **fields: Any) -> None:
    """Write an image (x, y, z); ``fields`` are added to the header."""
    header = {"shape": values.shape, "spacing_mm": spacing_mm, "origin_mm": [0.0, 0.0, 0.0], **fields}
    path.write_bytes(MAGIC + json.dumps(header).encode() + b"\n" + values.astype("<f4").tobytes())
