"""Raw k-space files as public bug reports describe them: noise and dummy scans, partial Fourier, odd arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from numpy.typing import NDArray

from model_core.mri_physics.fourier import fft2c_numpy

_SPACE = "<matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize><fieldOfView_mm><x>{w}</x><y>{h}</y><z>4</z></fieldOfView_mm>"
_XML = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
    f"<encodedSpace>{_SPACE.format(x=64, y=28, w=128, h=56)}</encodedSpace>"
    f"<reconSpace>{_SPACE.format(x=32, y=28, w=64, h=56)}</reconSpace>"
    "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center>"
    "</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
)


def phantom() -> NDArray[np.float64]:
    """Return two rectangles (64, 28), inside of the half of the readout that is reconstructed."""
    image = np.zeros((64, 28))
    image[24:44, 6:20] = 100
    image[26:32, 8:12] = 300
    return image


def write_raw(path: Path, first_line: int = 0) -> None:
    """Write the phantom as ISMRMRD with a noise scan of another length, a dummy line and two coils.

    Args:
        first_line: partial Fourier: the lines before it are missing.
    """
    kspace = fft2c_numpy(phantom()).astype(np.complex64)
    with ismrmrd.Dataset(str(path), "dataset", create_if_needed=True) as file:
        file.write_xml_header(_XML.format(last=27 - first_line, center=14 - first_line).encode())
        noise = ismrmrd.Acquisition.from_array(np.full((2, 100), 1e3, np.complex64))
        noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        file.append_acquisition(noise)
        dummy = _line(np.full(64, 1e4, np.complex64), 14 - first_line)
        dummy.set_flag(ismrmrd.ACQ_IS_DUMMYSCAN_DATA)
        file.append_acquisition(dummy)
        for line in range(first_line, 28):
            file.append_acquisition(_line(kspace[:, line], line - first_line))


def _line(samples: NDArray[np.complex64], counter: int) -> Any:
    line = ismrmrd.Acquisition.from_array(np.stack([samples, 1j * samples]).astype(np.complex64))
    line.center_sample, line.idx.kspace_encode_step_1 = 32, counter
    line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    line.position[:] = (10, -5, 20)
    return line


def write_fastmri(path: Path, kspace: NDArray[Any], **datasets: Any) -> None:
    """Write a file in the layout of fastMRI with further data sets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in {"kspace": kspace, **datasets}.items():
            file[name] = values
        file.attrs["acquisition"], file.attrs["patient_id"], file.attrs["max"] = "AXT2", "PLANTEDID", 1.0
