"""What the cards add up to, beside the figures of the OmniMRI paper.

The paper trained on 60 public datasets and names none of them, so the cards are candidates and not the paper's list. Several share
patients: BraTS took in UPENN-GBM, MAMA-MIA is made of four others. A card says so under ``overlaps``, and the sums are bounds:
*at most* leaves out what is known to be shared, *at least* also leaves out all that may be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from components.catalog.cards import COUNTS, FIGURES, DatasetCard, filled
from components.errors import BadInput

PAPER_COUNTS = {"patients": 47_917, "scans": 70_580, "volumes": 224_194, "slices": 19_000_000}
"""Section 2; slices are "over 19 million"."""
PAPER_REGIONS = {"North America": 63.3, "Asia": 20.4, "Europe": 16.3}
PAPER_ANATOMIES = {"brain": 25.0, "breast": 16.0, "knee": 12.0, "prostate": 7.0}
PAPER_TASKS = {"segmentation": 53.6, "diagnosis": 19.6, "reconstruction": 17.9, "detection": 5.5}
"""Percent; the paper does not say of what (patients, volumes or annotations)."""
PAPER_DATASETS = 60
SEVERAL, UNSTATED, IMAGES_ONLY = "several", "not stated", "images only"

MEANING = (
    "The paper does not name its 60 datasets: these cards are candidates, so a sum says what could be had, not what the paper had. "
    "A figure that nobody states is null and counts as nothing; the sums are therefore lower than the truth by the cards in the "
    "'null' column. At most: without patients known to be in another card too. At least: also without all that may be "
    "(overlaps of unknown size); overlaps that no card names are not seen. Synthetic and sample cards do not count."
)


@dataclass(frozen=True)
class Total:
    """One figure over all cards.

    Attributes:
        at_least: without anything that may be in two cards.
        at_most: without what is known to be in two cards.
        stated: cards that state it.
        null: cards that do not.
        checked: of those that state it, how many were read when the card was written.
        paper: the paper's figure.
    """

    at_least: int
    at_most: int
    stated: int
    null: int
    checked: int
    paper: int


@dataclass(frozen=True)
class Share:
    """One part of a partition of the cards.

    Attributes:
        cards: how many.
        patients: at most, of the cards that state them.
        percent: of all patients of the partition.
        card_percent: of all cards.
        paper: the paper's percentage, where it has one.
    """

    cards: int
    patients: int
    percent: float
    card_percent: float
    paper: float | None


@dataclass(frozen=True)
class Summary:
    """The catalogue against the paper. Tasks are no partition: a dataset with two kinds of annotation counts in both."""

    cards: int
    paper_cards: int
    totals: dict[str, Total]
    regions: dict[str, Share]
    anatomies: dict[str, Share]
    tasks: dict[str, Share]
    access: dict[str, Share]
    figures: int
    figures_checked: int
    meaning: str = MEANING


def summarise(cards: Iterable[DatasetCard], without: Collection[str] = ()) -> Summary:
    """Add up cards of people; samples, synthetic data and the cards named in ``without`` are left out.

    Raises:
        BadInput: no such card to leave out.
    """
    real = [card for card in cards if card.counts]
    for name in without:
        if name not in {card.id for card in real}:
            raise BadInput("no such card among those that count", where=name, remedy="omnimri catalog list names them")
    real = [card for card in real if card.id not in without]
    known = {card.id: card for card in real}
    patients = {card.id: _own(card, "patients", known)[1] for card in real}
    sourced = [card.sources[name] for card in real for name in FIGURES if name in card.sources]

    def shares(groups: dict[str, list[DatasetCard]], paper: dict[str, float], whole: list[DatasetCard]) -> dict[str, Share]:
        everybody = sum(patients[card.id] for card in whole)
        made = {}
        for name, members in groups.items():
            people = sum(patients[card.id] for card in members)
            made[name] = Share(
                len(members), people, _percent(people, everybody), _percent(len(members), len(whole)), paper.get(name)
            )
        return dict(
            sorted(made.items(), key=lambda item: (item[0] in (SEVERAL, UNSTATED, IMAGES_ONLY), -item[1].patients, item[0]))
        )

    return Summary(
        cards=len(real),
        paper_cards=PAPER_DATASETS,
        totals={name: _total(real, name, known) for name in COUNTS},
        regions=shares(_grouped(real, _region), PAPER_REGIONS, real),
        anatomies=shares(_grouped(real, lambda card: [card.anatomy or UNSTATED]), PAPER_ANATOMIES, real),
        tasks=shares(_grouped(real, lambda card: list(card.tasks) or [IMAGES_ONLY]), PAPER_TASKS, real),
        access=shares(_grouped(real, lambda card: [card.access or UNSTATED]), {}, real),
        figures=len(sourced),
        figures_checked=sum(source.checked for source in sourced),
    )


def _region(card: DatasetCard) -> list[str]:
    return [UNSTATED if not card.regions else card.regions[0] if len(card.regions) == 1 else SEVERAL]


def _grouped(cards: list[DatasetCard], names: Callable[[DatasetCard], list[str]]) -> dict[str, list[DatasetCard]]:
    groups: dict[str, list[DatasetCard]] = {}
    for card in cards:
        for name in names(card):
            groups.setdefault(name, []).append(card)
    return groups


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _total(cards: list[DatasetCard], name: str, known: dict[str, DatasetCard]) -> Total:
    own = [_own(card, name, known) for card in cards]
    stated = [card for card in cards if filled(card, name)]
    return Total(
        at_least=sum(least for least, _ in own),
        at_most=sum(most for _, most in own),
        stated=len(stated),
        null=len(cards) - len(stated),
        checked=sum(card.sources[name].checked for card in stated),
        paper=PAPER_COUNTS[name],
    )


def _own(card: DatasetCard, name: str, known: dict[str, DatasetCard]) -> tuple[int, int]:
    """How much of a figure a card brings that no other card it overlaps with states: (at least, at most).

    Overlaps are told in patients. Of scans, volumes and slices only a whole ("all") can be taken off for certain; where a part is
    shared, all that the other card has may be the same.
    """
    value = getattr(card, name)
    if value is None:
        return 0, 0
    least = most = value
    for other, shared in card.overlaps.items():
        theirs = getattr(known[other], name) if other in known else None
        if theirs is None:
            continue
        if shared == "all":
            return 0, 0
        if shared is not None and name == "patients":
            least, most = least - shared, most - shared
        else:
            least -= min(value, theirs)
    return max(least, 0), max(most, 0)
