"""The ISMRMRD XML header, which fastMRI files carry too: parse it, and reduce it to published terms and numbers."""

from __future__ import annotations

from collections import defaultdict
from xml.etree import ElementTree

import numpy as np

from components.ingestion.deidentification import allowlists

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
VENDOR, SCANNER = "acquisitionSystemInformation/systemVendor", "acquisitionSystemInformation/systemModel"
FIELD_STRENGTH = "acquisitionSystemInformation/systemFieldStrength_T"
_MATRICES = tuple(
    f"encoding/{space}Space/{element}/{axis}"
    for space in ("encoded", "recon")
    for element in ("matrixSize", "fieldOfView_mm")
    for axis in "xyz"
)
_LIMITS = tuple(
    f"encoding/encodingLimits/{axis}/{element}"
    for axis in ("kspace_encoding_step_1", "kspace_encoding_step_2")
    for element in ("minimum", "maximum", "center")
)
RETAINED = (
    VENDOR,
    SCANNER,
    FIELD_STRENGTH,
    "acquisitionSystemInformation/receiverChannels",
    *_MATRICES,
    *_LIMITS,
    "sequenceParameters/TR",
    "sequenceParameters/TE",
    "sequenceParameters/TI",
    "sequenceParameters/flipAngle_deg",
)
"""Paths that are retained: vendor and scanner as published names, all others as numbers."""
_TERMS = {VENDOR: allowlists.allowed_vendor, SCANNER: allowlists.allowed_scanner}


def parse_header(text: bytes | str) -> dict[str, list[str]]:
    """Return path of an element -> its texts, of the first encoding only; empty where the text is no XML."""
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 (expat of Python 3.11 bounds entity expansion; files are local)
    except ElementTree.ParseError:
        return {}
    values: dict[str, list[str]] = defaultdict(list)
    _collect(root, "", values)
    return dict(values)


def _collect(element: ElementTree.Element, path: str, values: dict[str, list[str]]) -> None:
    """Add the texts of an element's leaves to ``values``."""
    has_encoding = False
    for child in element:
        name = child.tag.rpartition("}")[2]
        if name == "encoding" and has_encoding:
            continue
        has_encoding = has_encoding or name == "encoding"
        child_path = f"{path}/{name}" if path else name
        if len(child):
            _collect(child, child_path, values)
        else:
            values[child_path].append((child.text or "").strip())


def clean_header(values: dict[str, list[str]]) -> str:
    """Return an ISMRMRD header of the retained paths, with normalized numbers."""
    root = ElementTree.Element(f"{{{NAMESPACE}}}ismrmrdHeader")
    for path in RETAINED:
        for text in values.get(path, []):
            value = _TERMS[path](text) if path in _TERMS else _normalize_number(text)
            if value is not None:
                _add_element(root, path, str(value))
    ElementTree.register_namespace("", NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def _add_element(root: ElementTree.Element, path: str, text: str) -> None:
    """Append a leaf at a path; existing parents are shared."""
    *parents, leaf = path.split("/")
    parent = root
    for name in parents:
        existing = parent.find(f"{{{NAMESPACE}}}{name}")
        parent = ElementTree.SubElement(parent, f"{{{NAMESPACE}}}{name}") if existing is None else existing
    ElementTree.SubElement(parent, f"{{{NAMESPACE}}}{leaf}").text = text


def first_number(values: dict[str, list[str]], path: str) -> float | None:
    """Return the first number at a path of a header; None where there is none."""
    numbers = (_normalize_number(text) for text in values.get(path, []))
    return next((float(number) for number in numbers if number is not None), None)


def _normalize_number(text: str) -> str | None:
    """Return a number in Python's general format; None for other text, infinity, NaN, and numbers of ten digits and more."""
    try:
        number = float(text)
    except ValueError:
        return None
    return f"{number:g}" if np.isfinite(number) and abs(number) < 1e9 else None
