"""Names of files as datasets have them: BIDS entities and suffixes, names of masks and maps, and files that are no images.

BIDS names an image ``sub-01_ses-2_acq-fast_T1w.nii.gz``: entities ``key-value``, and a suffix that tells what it is
(bids-specification 1.10, "Common principles" and "Imaging files"; derivatives: "Imaging data types"). The same words are used in
datasets of other layouts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import PurePosixPath

_EXTENSION = re.compile(r"(?i)\.(?:nii|hdr|img|mha|mhd|npy|nrrd|h5|json|tsv|csv)(?:\.gz)?$|\.gz$")
_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
_SESSION = re.compile(r"(?i)(?:^|[^a-z])(?:ses|session|visit|week|month|year|day|timepoint|tp|followup|fu)[-_ ]?([0-9]+)(?![0-9])")
_DATE = re.compile(r"(?<![0-9])((?:19|20)[0-9]{2})([-_.]?)([01][0-9])\2([0-3][0-9])(?![0-9])")
_IDENTIFYING = ("sub", "ses", "date", "task", "acq", "ce", "rec", "dir", "run", "echo", "flip", "inv", "mt", "chunk")
"""Entities that tell two scans of a patient apart; others (space, desc, label, res, part) describe a derivative of one."""
SEQUENCE_WORDS = frozenset(
    re.split(
        r"\s+",
        """t1 t1w t1n t1c t1ce t1gd t2 t2w t2f t2star t2starw pd pdw flair dwi adc swi bold gre tse mprage space dixon water fat
    pre post native contrast anat func fmap perf ce axial coronal sagittal ax cor sag tra""",
    )
)
"""Words, in lower case, that name a sequence or a plane, and not a scan."""
_MASKS = frozenset(
    re.split(
        r"\s+",
        """mask masks msk brainmask lesionmask defacemask seg segs dseg segm segmentation segmentations label
    labels roi rois gt groundtruth aseg parc parcellation contour contours annotation annotations
    aparc+aseg aparc wmparc ribbon atlas brainsegmentation""",
    )
)
_MASK_FOLDERS = re.compile(
    r"(?i)(?:labels?|masks?|segmentations?|seg|gt|groundtruth|annotations?)(?:[-_]?(?:tr|ts|train|test|val))?"
)
_PROBABILITIES = frozenset(("probseg", "probmap", "prob", "pve", "posterior", "posteriors"))
_PHASES = frozenset(("phase", "phase1", "phase2", "phasediff", "ph", "pha", "phaseimage", "phaseimg"))
_PARTS = {"real": "real part", "imag": "imaginary part", "imaginary": "imaginary part"}
_MAPS = frozenset(("fieldmap", "adc", "fa", "md", "ad", "rd", "dwimap", "cbf", "cmro2", "mtsat", "xfm"))
_MAP = re.compile(r"(?i).*map")
_MAPS_OF_ANY_LAYOUT = re.compile(
    r"fieldmap|adc|fa|md|cbf|cbv|mtt|ttp|tmax|qsm|chi|r2s|r2star|pdff|cmro2|mtsat|mtr|tensor|eigenvalues?|eigenvectors?"
    r"|[ztf]stat\d*|cope\d*|varcope\d*|warp|warpfield|biasfield|jacobian|displacement|(?:t1|t2|t2star|pd|b0|b1|ff|adc|fa|md|phase)?map"
)
"""Last words of the names of maps in folders of any layout (FSL, SPM, ANTs, vendors' exports)."""
_TENSOR = re.compile(r"(?:dti|dki|dtifit|dwifit|tensor)\d*")
_TENSOR_PARTS = re.compile(r"[lv][123]|mo|mk|ak|rk|s0|kurt|sse|ad|rd|dec")
"""Words of a diffusion fit, and of its parts, which alone may mean anything: ``dti_L1``, ``dti_V1``, ``dti_MO`` of FSL's dtifit."""
_DOCUMENTS = re.compile(
    r"(?i)(?:dicomdir|readme|changes|changelog|license|licence|citation|authors|copying)(?:\.\w+)?|\.bidsignore|citation\.cff"
    r"|(?:dataset_description|genetic_info|dataset)\.json"
    r"|(?:participants|samples|phenotype|sessions|genetic_database)\.(?:tsv|json)"
    r"|.*_(?:scans|sessions|events|channels|physio|stim|aslcontext|electrodes|coordsystem|timeseries|motion|regressors|beh)"
    r"\.(?:tsv|json)(?:\.gz)?|(?:.*\.)?b(?:val|vec|vals|vecs)|thumbs\.db|desktop\.ini|\.ds_store|icon\r?|\._.*"
)
_DOCUMENT_FOLDERS = frozenset(("__MACOSX", "code", "stimuli", "phenotype", ".git", ".datalad", "$RECYCLE.BIN"))
_DERIVED_DOCUMENTS = re.compile(
    r"(?i).*\.(?:html?|svg|png|txt|log|toml|bib|tex|md|css|js|gii|mat|xfm|lta|x5|tsv|json|pkl|tck|trk)(?:\.gz)?"
)
"""Reports, surfaces, transforms and tables that pipelines write to ``derivatives/``."""


def stem_of(relative: str) -> str:
    """Return the file name of a path without the suffixes of its format."""
    name = PurePosixPath(relative).name
    return _EXTENSION.sub("", name)


@lru_cache(maxsize=65536)
def entities_of(relative: str) -> dict[str, str]:
    """Return the BIDS entities of a path, its name's before its folders', and ``ses`` from other words for a visit."""
    parts = PurePosixPath(relative).parts
    found: dict[str, str] = {}
    for part in (stem_of(relative), *reversed(parts[:-1])):
        for token in part.split("_"):
            if match := _ENTITY.fullmatch(token):
                found.setdefault(match[1].lower(), match[2])
    if "ses" not in found and (visits := {match[1] for match in _SESSION.finditer(relative)}) and len(visits) == 1:
        found["ses"] = visits.pop().lstrip("0") or "0"
    if len(dates := {match[1] + match[3] + match[4] for match in _DATE.finditer(relative)}) == 1:
        found["date"] = dates.pop()
    return found


def session_of(relative: str) -> str | None:
    """Return the session or date in a path; None where it has none."""
    entities = entities_of(relative)
    return entities.get("ses") or entities.get("date")


def contradict(label: str, image: str) -> bool:
    """Return whether a label map and an image are of different patients, sessions or scans by their names."""
    ours, theirs = entities_of(label), entities_of(image)
    return any(key in ours and key in theirs and ours[key] != theirs[key] for key in _IDENTIFYING)


def closeness(label: str, image: str) -> int:
    """Return how many words of an image's path a label map's path has, too: folders, entities, and the sequence."""
    return len(set(words_of(label)) & set(words_of(image)))


@lru_cache(maxsize=65536)
def words_of(relative: str) -> tuple[str, ...]:
    """Return the words of a path: its folders and its name, split at underscores, points and blanks."""
    return tuple(filter(None, re.split(r"[/_. ]+", _EXTENSION.sub("", relative))))


def not_magnitude_by_name(relative: str) -> str:
    """Return what a path says that a file is instead of a magnitude image: "a mask", "phase", ...; "" for nothing."""
    entities = {match[1].lower(): match[2].lower() for match in _ENTITY.finditer(stem_of(relative))}
    words = [word for word in re.split(r"[_\-. ]+", stem_of(relative).lower()) if word]
    last = words[-1] if words else ""
    is_bids = "sub" in entities
    if last in _MASKS or any(_MASK_FOLDERS.fullmatch(folder) for folder in PurePosixPath(relative).parts[:-1]):
        return "a mask or label map"
    if last in _PROBABILITIES:
        return "a probability map"
    if last in _PHASES or entities.get("part") == "phase" or (len(last) == 1 and words[-2:-1] and words[-2] in _PHASES):
        return "phase"  # a letter behind it tells equal names apart (dcm2niix)
    if last in _PARTS or entities.get("part") in _PARTS:
        return _PARTS.get(last) or _PARTS[entities["part"]]
    if "stat" in entities:
        return "statistics"
    if (is_bids and (last in _MAPS or _MAP.fullmatch(last))) or _MAPS_OF_ANY_LAYOUT.fullmatch(last):
        return "a derived map"
    if _TENSOR_PARTS.fullmatch(last) and words[-2:-1] and _TENSOR.fullmatch(words[-2]):
        return "a derived map"
    return ""


def belongs_to_layout(relative: str) -> bool:
    """Return whether a file that is no image is one that a layout has beside images: documents, gradients, events."""
    path = PurePosixPath(relative)
    folders = set(path.parts[:-1])
    is_derived = "derivatives" in folders and _DERIVED_DOCUMENTS.fullmatch(path.name) is not None
    return _DOCUMENTS.fullmatch(path.name) is not None or bool(_DOCUMENT_FOLDERS & folders) or is_derived
