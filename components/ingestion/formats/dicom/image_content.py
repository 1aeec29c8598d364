"""Content of MR pixel values: magnitudes, which are images, or phase, real and imaginary parts, derived maps, colors.

The vendors state it in different places: in Complex Image Component (0008,9208) of enhanced images, from the third value of Image
Type on (Siemens ``P``, Philips ``P_FFE`` or ``PHASE MAP``; terms in PS3.3 C.8.3.1.1.1 and C.8.13.3.1), or in private elements: GE
(0043,102F), Philips (2005,1011), Siemens (0051,1016). Values are compared with published terms only; none is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pydicom import Dataset

from components.ingestion.formats.dicom import fast_elements

MAGNITUDE, PHASE, REAL, IMAGINARY, COMPLEX = "magnitude", "phase", "real part", "imaginary part", "complex values"
ADC = "ADC"
"""The apparent diffusion coefficient is a map, but one that the vocabulary of sequences names: it is an image of its own kind."""
_COMPONENTS = {
    **dict.fromkeys(("M", "MAG", "MAGNITUDE", "MAGNITUDE IMAGE", "MODULUS"), MAGNITUDE),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE IMAGE", "PHASE SUBTRACT", "PHASE DIFFERENCE", "PHASEDIFF"), PHASE),
    **dict.fromkeys(("R", "REAL", "REAL IMAGE"), REAL),
    **dict.fromkeys(("I", "IMAG", "IMAGINARY", "IMAGINARY IMAGE"), IMAGINARY),
    **dict.fromkeys(("COMPLEX", "COMPLEX IMAGE"), COMPLEX),
}
"""Normalized term -> component of the complex signal."""
_GE_COMPONENTS = (MAGNITUDE, PHASE, REAL, IMAGINARY)
_PHILIPS_PREFIXES = {"M": MAGNITUDE, "P": PHASE, "R": REAL, "I": IMAGINARY}
"""First word of Philips' terms such as ``P FFE``."""


def _named(noun: str, terms: str) -> dict[str, str]:
    return dict.fromkeys((term.strip() for term in terms.split(",")), noun)


_MAPS = {
    **_named("field map", "B0, B0 MAP, FIELD MAP, FIELDMAP, FIELDMAPHZ, FREQUENCY MAP, B1, B1 MAP, B1MAP, B0MAP"),
    **_named("velocity map", "VELOCITY, VELOCITY MAP"),
    **_named("relaxation map", "T1 MAP, T2 MAP, T2STAR MAP, T2 STAR MAP, T2* MAP, T1RHO MAP, R1, R2, R1 MAP, R2 MAP, R2STAR MAP"),
    **_named("relaxation map", "R2 STAR MAP, R2* MAP, R2STAR, R2*, T1MAP, T2MAP, R2 UNSPECIFIED"),
    **_named("density map", "DENSITY MAP, PD MAP"),
    **_named("diffusion map", "FA, FRACTIONAL ANISOTROPY, ANISOTROPY, COLFA, TENSOR, EADC, EXP, EVAL, EVEC, DIFFUSION MAP"),
    **_named("perfusion map", "CBF, CBV, RCBF, RCBV, RELCBF, RELCBV, CBV CORR, RELCCBV, MTT, RELMTT, TTP, TMAX, PBP, GBP, PEI"),
    **_named("perfusion map", "KTRANS, KEP, VE, VP, IAUC, IAUGC, PERFUSION MAP, WASH IN, WASHIN, WASH OUT, WASHOUT"),
    **_named("statistical map", "T TEST, TTEST, Z SCORE, BETA MAP, STD DEVIATION, STDDEV, VARIANCE"),
    **_named("fat fraction map", "FAT FRACTION, FATFRACTION, FAT FRAC, FF, PDFF, WATER FRACTION, WATERFRACTION"),
    **_named("elastogram", "STIFFNESS, ELASTOGRAM, WAVE, CURL WAVE"),
    **_named("susceptibility map", "QSM, SUSCEPTIBILITY, SUSCEPTIBILITY MAP"),
    **_named("temperature map", "TEMPERATURE, TEMPERATURE MAP"),
    **_named("metabolite map", "METABOLITE, METABOLITE MAP, METAB MAP"),
    **_named("magnetization transfer ratio", "MTR, MTSAT, MTR MAP"),
    **_named("difference of images", "SUB, SUBTRACT, SUBTRACTION, MODULUS SUBTRACT, IMAGE SUBTRACTION, DIFFERENCE"),
    **_named("ratio or product of images", "DIVISION, MULTIPLICATION, RATIO"),
    **_named("segmentation", "SEGMENTATION, SEGMENTED, LABELMAP, LABEL MAP"),
    **_named("derived map", "QUANTITY, ENERGY PROP WT, MAP, R2S, PARAMETRIC MAP"),
}
"""Normalized term -> noun of the derived image."""
_SCANS = ("B0", "B1")
"""Terms that name Philips' scan behind the component: ``M_B0``, ``M``, ``B0`` is a magnitude."""
_PHYSICAL_UNITS = frozenset("rad mrad Hz kHz rad/s ms s us 1/s /s mm2/s um2/s cm/s mm/s m/s Cel ppm kPa %".split())  # noqa: SIM905
"""UCUM codes of Real World Value Mappings under which values are no signal intensities."""


def normalize_term(value: Any) -> str:
    """Return a term in upper case with single blanks for underscores and hyphens: ``T2_STAR-MAP`` -> ``T2 STAR MAP``."""
    return " ".join(str(value).upper().replace("_", " ").replace("-", " ").split())


def _content_of_terms(terms: Iterable[str]) -> str:
    """Return the content that normalized terms name; a map or a component other than magnitude wins; "" where none is named."""
    found = ""
    for term in terms:
        prefix, _, rest = term.partition(" ")
        named = _MAPS.get(term) or _COMPONENTS.get(term) or (_PHILIPS_PREFIXES.get(prefix) if rest else None)
        if named is None and term.endswith(" MAP") and ADC not in term.split():
            named = "derived map"
        if found == MAGNITUDE and term in _SCANS:
            continue
        if named is not None and named != MAGNITUDE:
            return named
        found = named or found
    return found


@lru_cache(maxsize=1024)
def _content_of_texts(image_type: tuple[str, ...], component: str) -> str:
    return _content_of_terms([normalize_term(component), *map(normalize_term, image_type[2:])])


def content_of(image_type: Iterable[Any], component: Any = "") -> str:
    """Return the content of an image: :data:`MAGNITUDE`, another component, or the noun of a map; "" where the header states none.

    Args:
        image_type: values of Image Type or Frame Type.
        component: value of Complex Image Component.
    """
    return _content_of_texts(tuple(map(str, image_type)), str(component or ""))


def private_content(header: Dataset) -> str:
    """Return the content that a manufacturer's private elements state; "" where they state none."""
    groups = {tag >> 16 for tag in header.keys()}  # noqa: SIM118 (a data set yields converted elements)
    code = _private_value(header, 0x0043, "GEMS_PARM_01", 0x2F, "GE") if 0x0043 in groups else None
    if code is not None:
        number = int.from_bytes(code, "little") if isinstance(code, bytes) else _to_int(code)
        if number is not None and 0 <= number < len(_GE_COMPONENTS):
            return _GE_COMPONENTS[number]
    for group, creator, element, vendor in (
        (0x2005, "Philips MR Imaging DD 001", 0x11, "PHILIPS"),
        (0x0051, "SIEMENS MR HEADER", 0x16, "SIEMENS"),
    ):
        value = _private_value(header, group, creator, element, vendor) if group in groups else None
        if value is not None:
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
            if content := _content_of_terms(normalize_term(word) for word in text.strip(" \0").split(" ")[-1].split("/")[:1]):
                return content
    return ""


def _private_value(header: Dataset, group: int, creator: str, element: int, vendor: str) -> Any:
    """Return a private value of a creator; where the creator was removed, that of its usual block if the manufacturer fits."""
    try:
        return header.private_block(group, creator)[element].value
    except KeyError:
        pass
    usual = header.get((group, 0x1000 | element))
    is_vendors = str(header.get("Manufacturer") or "").upper().startswith(vendor)
    return usual.value if usual is not None and is_vendors and (group, 0x0010) not in header else None


def _to_int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def mapped_unit(items: Iterable[Dataset]) -> str:
    """Return the UCUM code of a physical unit to which a Real World Value Mapping of the data sets leads; "" for none."""
    for item in items:
        for mapping in fast_elements.converted(item, "RealWorldValueMappingSequence") or ():
            for unit in mapping.get("MeasurementUnitsCodeSequence") or ():
                code = str(unit.get("CodeValue") or "")
                if code in _PHYSICAL_UNITS:
                    return code
    return ""


def content_of_unit(unit: Any) -> str:
    """Return what values in a unit are (``Units`` of BIDS); "" for arbitrary units and unknown ones."""
    if not isinstance(unit, str) or unit not in _PHYSICAL_UNITS:
        return ""
    return PHASE if unit in ("rad", "mrad") else f"a map in {unit}"


def find_color(header: Dataset) -> str:
    """Return how an image encodes colors; "" for grayscale."""
    photometric = normalize_term(header.get("PhotometricInterpretation") or "")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return photometric if photometric == "RGB" or photometric.startswith("YBR") else "several samples per pixel"
    if photometric == "PALETTE COLOR" or photometric == "RGB" or photometric.startswith("YBR"):
        return photometric
    presentation = normalize_term(header.get("PixelPresentation") or "")
    return f"Pixel Presentation {presentation}" if presentation in ("COLOR", "MIXED", "TRUE COLOR") else ""


def is_inverted(header: Dataset) -> bool:
    """Return whether low values are displayed white: MONOCHROME1, or an inverse presentation lookup table."""
    shape = normalize_term(header.get("PresentationLUTShape") or "")
    return normalize_term(header.get("PhotometricInterpretation") or "") == "MONOCHROME1" or shape == "INVERSE"
