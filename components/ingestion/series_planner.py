"""From a folder of anything to series: which files belong together, whose they are, and what they will be called.

Every name under ``data/`` is a pseudonym: file and folder names of the source may carry the patient's. A series under ``data/`` is
one volume: what holds several (an enhanced file, a 4-D file with a card's channels, raw data) is parted here.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from components.catalog import DatasetCard
from components.catalog.cards import BoxTable, Table
from components.errors import BadInput
from components.ingestion.annotations import rt_structures
from components.ingestion.annotations.sidecars import Sidecars, stem_of
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.formats import ismrmrd, metaimage, nifti, numpy_array
from components.ingestion.formats.dicom import reader as dicom_reader
from components.ingestion.formats.dicom.series_splitting import Frame, split
from components.ingestion.formats.sniff import Kind, kind_of
from components.ingestion.quarantine import Listing, Rejection, UnsupportedInput
from components.ingestion.volume import Quarantined

Role = Literal["image", "label", "annotation"]
Action = Literal[
    "dicom",
    "structures",
    "mosaic",
    "frames",
    "dicom-sidecar",
    "nifti",
    "metaimage",
    "numpy",
    "sidecar",
    "kspace",
    "raw",
    "boxes",
    "findings",
    "report",
    "person",
]
Form = Literal["classic", "mosaic", "enhanced", "segmentation", "structures"]
Grid = tuple[int, ...]
Mapper = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterator[Any]]
"""Applies a function to items, perhaps in several processes; results in order."""


@dataclass(frozen=True)
class PlannedFile:
    """One file to be written.

    Attributes:
        source: where it comes from.
        target: relative to ``data/`` (POSIX form).
        role: what it is in its series.
        action: how it is cleaned.
        patient: pseudonym.
        about: sequence (sidecar), plane (numpy), or what a table is searched for (boxes, findings, report, person).
        part: what of the source: frames, counters of raw data, channel of a 4-D file, number of the card's table (of boxes: and the
            image's slices, rows and columns, where they are known).
        extra: other sources of it (inherited sidecars, lists of reviewed files).
    """

    source: Path
    target: str
    role: Role
    action: Action
    patient: str
    about: str = ""
    part: tuple[int, ...] = ()
    extra: tuple[Path, ...] = ()


@dataclass
class PlannedSeries:
    """One volume to be."""

    patient: str
    series_id: str
    reader: str
    files: list[PlannedFile] = field(default_factory=list)


@dataclass
class Plan:
    """All series of a dataset, and what is left out already."""

    listing: Listing
    series: list[PlannedSeries] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    ignored: int = 0

    def leave_out(self, paths: Iterable[Path], refusal: Rejection) -> None:
        """List files that are not taken in."""
        self.quarantined.append(self.listing.left_out(paths, refusal))


@dataclass(frozen=True)
class Look:
    """What the header of one file tells.

    Attributes:
        series: UID of its series; refers_to: UIDs of the series that outlines were drawn on.
    """

    path: Path
    kind: Kind
    refusal: Rejection | None = None
    patient: str = ""
    series: str = ""
    instance: str = ""
    frame_of_reference: str = ""
    form: Form = "classic"
    frames: tuple[Frame, ...] = ()
    refers_to: frozenset[str] = frozenset()


def look(path: Path) -> Look:
    """Look at one file: its kind, and of DICOM what decides its place."""
    try:
        kind = kind_of(path)
    except OSError:
        return Look(path, "other", Rejection("unreadable", "cannot be opened", "check its permissions"))
    if kind != "dicom":
        return Look(path, kind)
    try:
        return _look_at_dicom(path)
    except BadInput as error:
        return Look(path, kind, Rejection("unreadable", error.what, error.remedy))
    except Exception as error:  # library messages are not passed on: they may quote the header
        return Look(
            path,
            kind,
            Rejection("unreadable", f"a DICOM header that cannot be read ({type(error).__name__})", "get the file again"),
        )


def _look_at_dicom(path: Path) -> Look:
    header = dicom_reader.read_header(path)
    refused = dicom_reader.refusal(header)
    form: Form = "classic"
    frames: list[Frame] = []
    frame_of_reference = str(header.get("FrameOfReferenceUID", ""))
    if header.get("SOPClassUID") == dicom_reader.SEGMENTATION:
        form = "segmentation"
    elif header.get("SOPClassUID") == rt_structures.STRUCTURES:
        form, frame_of_reference = "structures", rt_structures.frame_of_reference(header)
    elif dicom_reader.is_mosaic(header):
        form = "mosaic"
    elif refused is None:
        form = "enhanced" if "PerFrameFunctionalGroupsSequence" in header else "classic"
        frames, refused = dicom_reader.frames_or_refusal(header, path)
    return Look(
        path,
        "dicom",
        refused,
        str(header.get("PatientID", "") or ""),
        str(header.get("SeriesInstanceUID", "")),
        str(header.get("SOPInstanceUID", "")),
        frame_of_reference,
        form,
        tuple(frames),
        rt_structures.referenced_series(header) if form == "structures" else frozenset(),
    )


def in_this_process(function: Callable[[Any], Any], items: Sequence[Any], _: str) -> Iterator[Any]:
    """The mapper that starts no other process."""
    return map(function, items)


def make_plan(card: DatasetCard, source: Path, pseudonyms: Pseudonyms, mapper: Mapper = in_this_process) -> Plan:
    """Sort the files of a source folder into series."""
    plan = Plan(Listing(source))
    paths: list[Path] = []
    for path in plan.listing:
        relative = path.relative_to(source)
        if any(part.startswith(".") for part in relative.parts) or card.layout.leaves_out(relative.as_posix()):
            plan.ignored += 1
        else:
            paths.append(path)
    found: dict[Kind, list[Look]] = defaultdict(list)
    for one in mapper(look, paths, "looking at files"):
        found[one.kind].append(one)
    others = [one.path for one in found["other"]]
    folder = _Folder(card, source, pseudonyms, others)
    _plan_dicom(plan, folder, found["dicom"])
    _plan_images(plan, folder, [one for kind in ("nifti", "metaimage", "numpy") for one in found[kind]])
    _plan_kspace(plan, folder, [one.path for one in found["hdf5"]])
    known = folder.used | folder.sidecars.used
    for one in found["other"]:
        if one.path not in known:
            plan.leave_out([one.path], one.refusal or _NO_IMAGE)
    return plan


_NO_IMAGE = Rejection(
    "no image", "no image of a known format by its content, and nothing that belongs to one", "convert it, if it is one"
)


def _matches(relative: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(relative, pattern) for pattern in globs)


def _group(expression: str | None, relative: str) -> str | None:
    match = re.search(expression, relative) if expression else None
    return match[1] if match else None


class _Folder:
    """A source folder as its card sees it.

    Attributes:
        used: files beside images that belong to one.
    """

    def __init__(self, card: DatasetCard, source: Path, pseudonyms: Pseudonyms, others: list[Path]) -> None:
        self.card, self.layout, self.source, self.pseudonyms = card, card.layout, source, pseudonyms
        self.sidecars = Sidecars(source, others)
        self.used: set[Path] = set()
        self.reviewed = self._matching(others, self.layout.reviewed)
        globs = [table if isinstance(table, str) else table.path for table in self.layout.boxes]
        self.boxes = [(number, path) for number, glob in enumerate(globs) for path in self._matching(others, [glob])]
        self.tables = [
            (number, path) for number, table in enumerate(self.layout.tables) for path in self._matching(others, [table.path])
        ]
        self.used |= {*self.reviewed, *(path for _, path in (*self.boxes, *self.tables))}

    def _matching(self, paths: list[Path], globs: Iterable[str]) -> list[Path]:
        return [path for path in paths if _matches(path.relative_to(self.source).as_posix(), globs)]

    def relative(self, path: Path) -> str:
        """Path in the source folder."""
        return path.relative_to(self.source).as_posix()

    def patient(self, relative: str) -> str:
        """By the card's expression; without one the whole dataset counts as one patient, so that nothing leaks between splits."""
        return self.pseudonyms.patient(_group(self.layout.patient, relative) or "")

    def sequence(self, relative: str) -> str:
        """What the card says that an image is; the longest text that fits decides."""
        fitting = [text for text in self.layout.sequences if text in relative]
        return self.layout.sequences[max(fitting, key=lambda text: (len(text), text))] if fitting else ""

    def findings(self, relative: str, dicom_patient: str | None, patient: str, stem: str) -> list[PlannedFile]:
        """What each of the card's tables that has a key for this image says: findings, a report, sex and age."""
        files: list[PlannedFile] = []
        for number, table in self.tables:
            key = self._key(self.layout.tables[number], relative, dicom_patient)
            kinds: list[Action] = ["findings"] if self.layout.tables[number].findings else []
            kinds += ["report"] if self.layout.tables[number].report is not None else []
            kinds += ["person"] if self.layout.tables[number].sex is not None or self.layout.tables[number].age is not None else []
            for kind in kinds if key else ():
                target = f"{stem}.{kind}-{len(files)}.json"
                files.append(PlannedFile(table, target, "annotation", kind, patient, about=key or "", part=(number,)))
        return files

    def boxes_of(
        self, relative: str, dicom_patient: str | None, patient: str, stem: str, grid: Grid, file_name: str = ""
    ) -> list[PlannedFile]:
        """The boxes of each of the card's tables that has a key for this image.

        Args:
            grid: slices, rows and columns of the image; empty where they are not known.
            file_name: key in tables of fastMRI+'s form; none for images that they are not about.
        """
        files: list[PlannedFile] = []
        for number, path in self.boxes:
            table = self.layout.boxes[number]
            declared = isinstance(table, BoxTable)
            key = self._key(table, relative, dicom_patient) if isinstance(table, BoxTable) else file_name
            if key:
                target = f"{stem}.boxes{f'-{len(files)}' if files else ''}.json"
                files.append(
                    PlannedFile(
                        path,
                        target,
                        "annotation",
                        "boxes",
                        patient,
                        about=key,
                        part=(number, *grid),
                        extra=() if declared else tuple(self.reviewed),
                    )
                )
        return files

    def _key(self, table: Table, relative: str, dicom_patient: str | None) -> str | None:
        """What a table's key column is searched for."""
        expression = table.image or (self.layout.patient if dicom_patient is None else None)
        return _group(expression, relative) if expression or dicom_patient is None else dicom_patient


class _Placed(NamedTuple):
    """A volume to be, with the header of one of its files."""

    look: Look
    series: PlannedSeries


def _plan_dicom(plan: Plan, folder: _Folder, looks: list[Look]) -> None:
    series: dict[tuple[str, str], list[Look]] = defaultdict(list)
    labels: list[Look] = []
    planned: list[_Placed] = []
    for one in _without_copies(plan, looks):
        if one.form in ("segmentation", "structures"):
            labels.append(one)
        elif one.form == "mosaic":
            planned.append(_Placed(one, _unpacked(folder, one, one.instance, "mosaic", ())))
        elif one.form == "enhanced":
            volumes = _volumes(plan, one.frames)
            for volume in volumes:
                name = one.instance if len(volumes) == 1 else f"{one.instance}\0{volume[0].index}"
                indices = tuple(frame.index for frame in volume)
                planned.append(_Placed(one, _unpacked(folder, one, name, "frames", indices)))
        else:
            series[one.patient, one.series].append(one)
    for of_series in series.values():
        planned += _classic(plan, folder, of_series)
    planned.sort(key=lambda one: one.series.series_id)
    _attach_labels(plan, folder, labels, planned)
    plan.series += [one.series for one in planned]


def _without_copies(plan: Plan, looks: list[Look]) -> Iterator[Look]:
    """The files that are taken in, one of each SOP Instance UID: a whole one where another is broken."""
    same: dict[str, list[Look]] = defaultdict(list)
    for one in looks:
        if one.refusal is not None:
            plan.leave_out([one.path], one.refusal)
        else:
            same[one.instance].append(one)
    for copies in same.values():
        kept = copies[0] if len(copies) == 1 else next((one for one in copies if _broken(one) is None), copies[0])
        yield kept
        for one in copies:
            if one is not kept:
                plan.leave_out([one.path], _broken(one) or _COPY)


def _broken(one: Look) -> Rejection | None:
    return None if one.form == "structures" else dicom_reader.broken(one.path)  # which has no pixels


_COPY = Rejection("duplicate", "the same SOP Instance UID as another file", "remove one of the two")


def _volumes(plan: Plan, frames: Iterable[Frame]) -> list[tuple[Frame, ...]]:
    volumes, refused = split(frames)
    for one in refused:
        plan.leave_out([frame.path for frame in one.frames], Rejection("geometry", one.reason, one.remedy))
    return volumes


def _unpacked(folder: _Folder, one: Look, name: str, action: Action, part: tuple[int, ...]) -> PlannedSeries:
    """A volume out of one file, which becomes NIfTI with a sidecar."""
    patient, series_id = folder.pseudonyms.patient(one.patient), folder.pseudonyms.series(name)
    stem = f"{folder.card.id}/{patient}/{series_id}"
    return PlannedSeries(
        patient,
        series_id,
        "nifti",
        [
            PlannedFile(one.path, f"{stem}.nii", "image", action, patient, part=part),
            PlannedFile(one.path, f"{stem}.json", "annotation", "dicom-sidecar", patient, part=part[:1]),
            *folder.findings(folder.relative(one.path), one.patient, patient, stem),
        ],
    )


def _classic(plan: Plan, folder: _Folder, looks: list[Look]) -> list[_Placed]:
    """The volumes of a series of single-frame files."""
    by_path = {one.path: one for one in looks}
    volumes = _volumes(plan, (frame for one in looks for frame in one.frames))
    planned = []
    for volume in volumes:
        first = by_path[volume[0].path]
        patient = folder.pseudonyms.patient(first.patient)
        name = folder.pseudonyms.series(first.series if len(volumes) == 1 else f"{first.series}\0{first.instance}")
        stem = f"{folder.card.id}/{patient}/{name}"
        files = []
        for frame in volume:
            image = folder.pseudonyms.series(by_path[frame.path].instance)
            number = frame.number if 0 <= frame.number < 10**5 else 0
            files.append(PlannedFile(frame.path, f"{stem}/{number:05d}-{image[1:7]}.dcm", "image", "dicom", patient))
        files.sort(key=lambda file: file.target)
        relative, grid = folder.relative(first.path), (len(volume), *volume[0].shape)
        files += folder.findings(relative, first.patient, patient, stem)
        files += folder.boxes_of(relative, first.patient, patient, stem, grid)
        planned.append(_Placed(first, PlannedSeries(patient, name, "dicom", files)))
    return planned


def _attach_labels(plan: Plan, folder: _Folder, labels: list[Look], planned: list[_Placed]) -> None:
    """Offer a segmentation to every volume of its patient in its frame of reference, a structure set to those of them that are of
    the series it refers to, if it does; grids are compared later.
    """
    for one in labels:
        patient, image = folder.pseudonyms.patient(one.patient), folder.pseudonyms.series(one.instance)
        stem = f"{folder.card.id}/{patient}/{image}"
        if one.form == "segmentation":
            what, file = "a segmentation", PlannedFile(one.path, f"{stem}.seg.dcm", "label", "dicom", patient)
        else:
            what, file = "a structure set", PlannedFile(one.path, f"{stem}.rtstruct.dcm", "label", "structures", patient)
        own = [other for other in planned if other.series.patient == patient]
        own = [other for other in own if not one.refers_to or other.look.series in one.refers_to]
        homes = [other.series for other in own if other.look.frame_of_reference == one.frame_of_reference]
        for series in homes:
            series.files.append(file)
        if not homes:
            fault = "in another frame of reference than its image" if own and one.refers_to else "of no image here"
            plan.leave_out([one.path], Rejection("label", f"{what} {fault}", "give the images that it was made on"))


def _plan_images(plan: Plan, folder: _Folder, looks: list[Look]) -> None:
    """NIfTI, MetaImage and NumPy files, and the label maps among them."""
    labels: dict[str, list[PlannedFile]] = defaultdict(list)
    images: list[tuple[str, PlannedSeries]] = []
    for one in looks:
        relative = folder.relative(one.path)
        folder.used |= {beside for beside in _beside(one) if beside is not None}
        patient, name = folder.patient(relative), folder.pseudonyms.series(relative)
        case = _group(folder.layout.case, relative) or patient
        stem = f"{folder.card.id}/{patient}/{name}"
        action: Action = one.kind  # type: ignore[assignment]
        tissue = [value for value, pattern in sorted(folder.layout.tissue_maps.items()) if _matches(relative, [pattern])]
        if tissue or _matches(relative, folder.layout.labels):
            middle = f"tissue-{tissue[0]}" if tissue else "seg"
            labels[case].append(PlannedFile(one.path, f"{stem}.{middle}.nii", "label", action, patient))
            continue
        try:
            parts = _parts(folder, one, relative)
        except BadInput as error:
            kind = error.kind if isinstance(error, UnsupportedInput) else "unreadable"
            plan.leave_out([one.path], Rejection(kind, error.what, error.remedy))
            continue
        for part in parts:
            images.append((case, _image(folder, one, relative, patient, action, part)))
    taken = set()
    for case, series in images:
        series.files += labels[case]
        taken.add(case)
    for case, files in labels.items():
        for file in files if case not in taken else ():
            plan.leave_out([file.source], Rejection("label", "a label map of no image here", "mend layout.case or layout.labels"))
    plan.series += [series for _, series in images]


def _image(folder: _Folder, one: Look, relative: str, patient: str, action: Action, part: tuple[int, ...]) -> PlannedSeries:
    name = folder.pseudonyms.series(f"{relative}\0{part[0]}" if part else relative)
    stem = f"{folder.card.id}/{patient}/{name}"
    plane = next((plane for text, plane in sorted(folder.layout.planes.items()) if text in relative), "axial")
    files = [PlannedFile(one.path, f"{stem}.nii", "image", action, patient, about=plane if action == "numpy" else "", part=part)]
    sidecars = folder.sidecars.of(one.path)
    sequence = folder.layout.channels[part[0]] if part else folder.sequence(relative)
    if sidecars or sequence:
        own = sidecars[-1] if sidecars else one.path.with_name(f"{stem_of(one.path)}.json")
        files.append(PlannedFile(own, f"{stem}.json", "annotation", "sidecar", patient, about=sequence, extra=sidecars[:-1]))
    files += folder.findings(relative, None, patient, stem)
    files += folder.boxes_of(relative, None, patient, stem, _grid(one) if folder.boxes else ())
    return PlannedSeries(patient, name, "nifti", files)


def _grid(one: Look) -> Grid:
    """Slices, rows and columns of an image; empty where its header cannot be read, which will be told when it is."""
    try:
        shape = numpy_array.shape_of(one.path)[::-1] if one.kind == "numpy" else _shape(one)
    except BadInput:
        return ()
    return tuple(shape[2::-1])


def _shape(one: Look) -> tuple[int, ...]:
    return metaimage.shape_of(one.path) if one.kind == "metaimage" else nifti.shape_of(one.path)


def _beside(one: Look) -> list[Path | None]:
    """Files that hold the voxels of a header file."""
    if one.kind == "metaimage":
        return [metaimage.data_file(one.path)]
    return [one.path.with_suffix(".img")] if one.kind == "nifti" and one.path.suffix == ".hdr" else []


def _parts(folder: _Folder, one: Look, relative: str) -> list[tuple[int, ...]]:
    """Which images of a file become volumes: a number along the fourth axis for each, or () for the file as one.

    What a fourth axis means, no header says: the card names its channels, or one sequence for the file, which they then repeat.

    Raises:
        BadInput: a header that cannot be read.
        UnsupportedInput: a 4-D file that the card does not explain, or explains otherwise.
    """
    channels = folder.layout.channels
    if one.kind == "numpy" or (not channels and folder.sequence(relative)):
        return [()]
    shape = _shape(one)
    if len(shape) != 4 or (shape[3] == 1 and not channels):
        return [()]
    if not channels:
        raise UnsupportedInput(
            "unsupported",
            f"{shape[3]} images along the fourth axis, and the card does not say what they are",
            remedy="name each in layout.channels; if they repeat one image, name it in layout.sequences: the first is then used",
        )
    if shape[3] != len(channels):
        raise UnsupportedInput(
            "unsupported",
            f"{shape[3]} images along the fourth axis, the card names {len(channels)} channels",
            remedy="mend layout.channels of the card",
        )
    return [(channel,) for channel in range(len(channels))]


def _plan_kspace(plan: Plan, folder: _Folder, paths: list[Path]) -> None:
    for path in paths:
        relative = folder.relative(path)
        patient = folder.patient(relative)
        try:
            parts: list[tuple[int, ...]] = list(ismrmrd.images(path)) if ismrmrd.is_raw(path) else [()]
        except BadInput as error:
            plan.leave_out([path], Rejection("unreadable", error.what, error.remedy))
            continue
        for part in parts:
            name = folder.pseudonyms.series(f"{relative}\0{part}" if len(parts) > 1 else relative)
            stem = f"{folder.card.id}/{patient}/{name}"
            action: Action = "raw" if part else "kspace"
            one = PlannedSeries(patient, name, "kspace", [PlannedFile(path, f"{stem}.h5", "image", action, patient, part=part)])
            one.files += folder.boxes_of(relative, None, patient, stem, (), "" if part else path.stem)
            one.files += folder.findings(relative, None, patient, stem)
            plan.series.append(one)
