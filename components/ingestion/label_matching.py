"""Choice of the label map of an image among those on its grid: by session and scan in their names, never the first that fits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from components.ingestion.file_names import SEQUENCE_WORDS, closeness, session_of, words_of
from components.ingestion.formats.stored_labels import TISSUE_INFIX
from components.ingestion.quarantine import Rejection

AMBIGUOUS = Rejection(
    "label",
    "one of several label maps that fit the same image equally well: none of them is used",
    "name one of them in layout.labels, or tell them apart with layout.case",
)
LESS_CLOSE = Rejection(
    "label", "a label map whose image has another one with a closer name", "name one of them in layout.labels, or give layout.case"
)
SEVERAL_SESSIONS = Rejection(
    "label",
    "a label map without a session that fits images of several sessions: it is not used",
    "put the session into its name (ses-1), or give layout.case",
)


OF_ANOTHER_SCAN = "a label map on the grid of more images than its name fits: it is used for those of its own scan alone"


@dataclass(frozen=True)
class FittingLabels:
    """Label files on the grid of one image.

    Attributes:
        image: source path of the image, relative to the source folder.
        labels: target of each label file -> its source path, relative to the source folder.
    """

    image: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class LabelChoice:
    """Label files of one image.

    Attributes:
        chosen: targets of the files that form its label map.
        faults: target -> reason why another fitting file is not among them.
    """

    chosen: tuple[str, ...]
    faults: Mapping[str, Rejection]


def choose_labels(fitting: FittingLabels, content_of: Callable[[str], str]) -> LabelChoice:
    """Choose the label map of an image: one file, or one tissue map for each structure.

    Of several files of one kind, that whose path shares most words with the image's is chosen; of equal copies, the first. Where
    two remain, or a label map and tissue maps, none is used.

    Args:
        content_of: target -> digest of its values.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for target in sorted(fitting.labels):
        groups[target.partition(TISSUE_INFIX)[2] and "tissue " + target.partition(TISSUE_INFIX)[2]].append(target)
    if "" in groups and len(groups) > 1:
        return LabelChoice((), dict.fromkeys(fitting.labels, AMBIGUOUS))
    chosen: list[str] = []
    faults: dict[str, Rejection] = {}
    for targets in groups.values():
        near = {target: closeness(fitting.labels[target], fitting.image) for target in targets}
        best = [target for target in targets if near[target] == max(near.values())]
        if len({content_of(target) for target in best}) > 1:
            faults.update(dict.fromkeys(best, AMBIGUOUS))
        else:
            chosen.append(best[0])
        faults.update({target: LESS_CLOSE for target in targets if target not in (*chosen, *faults)})
    return LabelChoice(tuple(chosen), faults)


def labels_of_other_scans(choices: Iterable[tuple[FittingLabels, LabelChoice]], sequences: Iterable[str]) -> list[set[str]]:
    """Return for each image the label files chosen for it whose names belong to other images for which they are chosen, too.

    A label map of scan A (``sub-1_A_seg``) fits the grid of scan B, for which there may be none. Words that name a sequence tell no
    scans apart: a label map drawn on one sequence is used for the others of its scan.

    Args:
        sequences: texts of the card by which it knows the sequence of a file.
    """
    items = list(choices)
    ignored = SEQUENCE_WORDS | {word for text in sequences for word in words_of(text)}
    shared: dict[str, list[Counter[str]]] = defaultdict(list)
    for fitting, choice in items:
        for target in choice.chosen:
            shared[target].append(_shared_words(fitting, target, ignored))
    return [
        {target for target in choice.chosen if any(_shared_words(fitting, target, ignored) < other for other in shared[target])}
        for fitting, choice in items
    ]


def _shared_words(fitting: FittingLabels, target: str, ignored: Set[str]) -> Counter[str]:
    """Return the words of a label file's path that its image's path has, too, each as often as in both."""
    common = Counter(words_of(fitting.labels[target])) & Counter(words_of(fitting.image))
    return Counter({word: count for word, count in common.items() if word.lower() not in ignored})


def labels_across_sessions(choices: Iterable[tuple[FittingLabels, LabelChoice]]) -> set[str]:
    """Return the label files without a session in their names that were chosen for images of several sessions."""
    sessions: dict[str, set[str]] = defaultdict(set)
    for fitting, choice in choices:
        session = session_of(fitting.image)
        for target in choice.chosen:
            if session is not None and session_of(fitting.labels[target]) is None:
                sessions[target].add(session)
    return {target for target, found in sessions.items() if len(found) > 1}
