"""Allow-lists of the words that ingestion may write to ``data/``. Any other text may name a patient and is removed.

A value passes only if each of its words is published: a defined term of the standard, a manufacturer, a product name, a body part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VENDORS = {
    "siemens": "Siemens",
    "ge": "GE",
    "philips": "Philips",
    "canon": "Canon",
    "toshiba": "Toshiba",
    "hitachi": "Hitachi",
    "fujifilm": "Fujifilm",
    "uih": "United Imaging",
    "united": "United Imaging",
    "esaote": "Esaote",
    "bruker": "Bruker",
    "varian": "Varian",
    "agilent": "Agilent",
    "hyperfine": "Hyperfine",
    "marconi": "Marconi",
    "picker": "Picker",
    "elscint": "Elscint",
    "fonar": "Fonar",
    "neusoft": "Neusoft",
    "paramed": "Paramed",
    "anke": "Anke",
    "xingaoyi": "Xingaoyi",
}
"""First word of a manufacturer's name, lower case -> canonical spelling."""

_SCANNERS = _words(
    """
    magnetom aera allegra amira altea area avanto avantofit biograph cima concerto espree essenza expert flow freemax
    freestar harmony impact lumina mmr open prisma prismafit sempra skyra skyrafit sola sonata spectra symphony symphonytim
    terra trio triotim verio vida viato vision fit tim connectom connectome x plus signa genesis discovery optima brivo
    architect artist champion creator explorer hero horizon infinity lx ovation pet pioneer premier prime profile uhp victor
    voyager excite echospeed hispeed hdx hdxt hdi hde cvi edge ohd edr achieva ambition dstream elition eclipse evolution
    gyroscan ingenia ingenuity intera mr multiva nova panorama prodiva quasar sonalleum mrt atlas centurian elan excelart
    fortian galan orian powervision saturn titan vantage visart airis altaire apertus aperto echelon oasis oval smart
    synergy velocity umr omega jupiter swoop biospec biospin pharmascan clinscan medical systems healthcare hfo hpro
    """
)
_MODEL_NUMBER = re.compile(r"(?:mr|mrt|umr|nx)\d{2,4}[a-z]?\d?", re.IGNORECASE)
_NUMBER_OR_FIELD = re.compile(r"\d{3,4}w?|\d(?:[.,]\d{1,2})?(?:tx?)?", re.IGNORECASE)  # only beside a product name

_BODY = _words(
    """
    abdomen adrenal ankle aorta arm bile bladder body brain brainstem breast calf carotid cervical cervix chest circle
    clavicle coccyx colon duct ear elbow extremity extremities eye eyes face femur finger foot forearm gallbladder hand head
    heart hip humerus iliac jaw joint kidney knee leg liver lower lumbar lumbosacral lung mediastinum neck orbit orbits
    ovary pancreas parotid pelvis penis pituitary prostate rectum renal sacrum scapula scrotum shoulder skull spine spleen
    sternum stomach testis thigh thoracic thorax throat thumb thyroid tibia toe tmj trunk tspine cspine lspine lsspine upper
    uterus vessel vertebra whole wholebody willis wrist and of
    """
)
_IMAGE_WORDS = _words(
    """
    ORIGINAL DERIVED PRIMARY SECONDARY OTHER MIXED NONE M P R I M_FFE M_SE M_IR M_B0 P_FFE MAGNITUDE PHASE REAL IMAGINARY ND
    NORM FM DIS2D DIS3D MOSAIC DIFFUSION TRACEW ADC FA TENSOR CALC_BVALUE MPR MIP MINIP PROJECTION IMAGE CSA CSAMPR CSAMIP
    CSAPARALLEL T1 T2 T2_STAR PROTON_DENSITY W F WATER FAT IN_PHASE OUT_PHASE IP OP IN OPP ADD SUB SUBTRACTION MEAN MEDIAN
    FMRI PERFUSION ANGIO TOF VOLUME REFORMATTED AVERAGE LOCALIZER RESAMPLED MAP FLOW_ENCODED FLUID_ATTENUATED STIR DIXON SWI
    COMP_AD
    """
)

FINDINGS = frozenset(
    {
        "absent septum pellucidum",
        "artifact",
        "bone - lesion",
        "bone- subchondral edema",
        "bone-fracture/contusion/dislocation",
        "cartilage - full thickness loss/defect",
        "cartilage - partial thickness loss/defect",
        "colpocephaly",
        "craniectomy",
        "craniectomy with cranioplasty",
        "craniotomy",
        "displaced meniscal tissue",
        "dural thickening",
        "edema",
        "encephalomalacia",
        "enlarged ventricles",
        "extra-axial collection",
        "extra-axial mass",
        "global ischemia",
        "global label: small vessel chronic white matter ischemic change",
        "global white matter disease",
        "innumerable bilateral focal brain lesions",
        "intraventricular substance",
        "joint bodies",
        "joint effusion",
        "lacunar infarct",
        "lcl complex - low-mod grade sprain",
        "lcl complex- high grade sprain",
        "lesion",
        "ligament - acl high grade sprain",
        "ligament - acl low grade sprain",
        "ligament - mcl high grade sprain",
        "ligament - mcl low-mod grade sprain",
        "ligament - pcl high grade",
        "ligament - pcl low-mod grade sprain",
        "likely cysts",
        "mass",
        "meniscus tear",
        "motion artifact",
        "muscle strain",
        "nonspecific lesion",
        "nonspecific white matter lesion",
        "normal for age",
        "normal variant",
        "paranasal sinus opacification",
        "patellar retinaculum - high grade sprain",
        "periarticular cysts",
        "pineal cyst",
        "possible artifact",
        "possible demyelinating disease",
        "posttreatment change",
        "resection cavity",
        "soft tissue lesion",
    }
)
"""Labels of the fastMRI+ boxes, lower case, and ``lesion``."""

DEFINED_TERMS: Mapping[str, frozenset[str]] = {
    "Modality": frozenset({"MR", "SEG", "RTSTRUCT"}),
    "ScanningSequence": frozenset({"SE", "IR", "GR", "EP", "RM"}),
    "SequenceVariant": frozenset({"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"}),
    "ScanOptions": frozenset({"PER", "RG", "CG", "PPG", "FC", "PFF", "PFP", "SP", "FS"}),
    "MRAcquisitionType": frozenset({"2D", "3D"}),
    "PhotometricInterpretation": frozenset({"MONOCHROME1", "MONOCHROME2"}),
    "PatientPosition": frozenset({"HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"}),
    "PatientSex": frozenset({"F", "M", "O"}),
    "BurnedInAnnotation": frozenset({"NO"}),
    "LossyImageCompression": frozenset({"00", "01"}),
    "SegmentationType": frozenset({"BINARY", "FRACTIONAL", "LABELMAP"}),
    "SegmentationFractionalType": frozenset({"PROBABILITY", "OCCUPANCY"}),
    "SegmentAlgorithmType": frozenset({"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}),
    "SegmentsOverlap": frozenset({"YES", "NO", "UNDEFINED"}),
    "DimensionOrganizationType": frozenset({"3D", "3D_TEMPORAL", "TILED_FULL", "TILED_SPARSE"}),
    "ContourGeometricType": frozenset(
        {"POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR"}
    ),
    "ImageType": _IMAGE_WORDS,
}
"""DICOM keyword -> the defined terms (PS3.3) that the readers use."""


def filter_terms(keyword: str, values: Iterable[Any]) -> list[str]:
    """Return the values that are defined terms of a keyword.

    In Image Type, where the position has a meaning, other values are replaced by ``OTHER``.
    """
    terms, texts = DEFINED_TERMS[keyword], [str(value).strip().upper() for value in values]
    if keyword != "ImageType":
        return [text for text in texts if text in terms]
    return [text if text in terms or all(word in terms for word in text.split()) else "OTHER" for text in texts]


def allowed_vendor(value: Any) -> str | None:
    """Return the canonical name of a manufacturer; None for other text."""
    words = re.findall(r"[a-z]+", str(value or "").lower())
    return VENDORS.get(words[0]) if words else None


def allowed_scanner(value: Any) -> str | None:
    """Return a product name unchanged; None if one of its words is in no manufacturer's catalog."""
    text = str(value or "").strip()
    words = re.findall(r"[^\s_\-/]+", text)
    names = [word for word in words if word.lower() in _SCANNERS or allowed_vendor(word) or _MODEL_NUMBER.fullmatch(word)]
    is_allowed = names and all(word in names or _NUMBER_OR_FIELD.fullmatch(word) for word in words)
    return text if is_allowed else None


def allowed_body_part(value: Any) -> str | None:
    """Return a body part in lower case; None for other text."""
    text = str(value or "").strip().lower()
    words = re.findall(r"[a-z]+", text)
    named = set(words) - {"and", "of", "lower", "upper", "whole"}
    return text if named and all(word in _BODY for word in words) and not re.search(r"\d", text) else None
