"""Sum the statistics of the cards and compare them with those of the OmniMRI paper.

The paper trained on 60 public datasets and names none of them, so the cards are candidates and not the paper's list. Several
datasets share patients: BraTS includes UPENN-GBM, MAMA-MIA combines four other datasets. A card declares this under ``overlaps``,
and the sums are bounds: *at most* excludes what is known to be shared, *at least* also excludes all that may be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from components.catalog.cards import COUNTS, STATISTICS, DatasetCard, is_filled
from components.errors import BadInput

PAPER_COUNTS = {"patients": 47_917, "scans": 70_580, "volumes": 224_194, "slices": 19_000_000}
"""Section 2 of the paper; slices are "over 19 million"."""
PAPER_REGIONS = {"North America": 63.3, "Asia": 20.4, "Europe": 16.3}
PAPER_ANATOMIES = {"brain": 25.0, "breast": 16.0, "knee": 12.0, "prostate": 7.0}
PAPER_TASKS = {"segmentation": 53.6, "diagnosis": 19.6, "reconstruction": 17.9, "detection": 5.5}
"""Percent; the paper does not state the unit (patients, volumes or annotations)."""
PAPER_DATASETS = 60
SEVERAL, UNSTATED, IMAGES_ONLY = "several", "not stated", "images only"

MEANING = (
    "The paper does not name its 60 datasets. These cards are candidates, so a sum describes the available data, not the data of "
    "the paper. An unknown statistic is null and adds nothing, so the true sums are higher by the cards in the 'null' column. "
    "At most: without patients known to be in another card too. At least: also without all patients that may be "
    "(overlaps of unknown size); overlaps that no card declares are not detected. Synthetic and sample cards are excluded."
)


@dataclass(frozen=True)
class Total:
    """Sum of one statistic over all cards.

    Attributes:
        at_least: sum without anything that may be in two cards.
        at_most: sum without what is known to be in two cards.
        stated: number of cards with a value.
        null: number of cards without a value.
        checked: number of values that were verified at their source when the card was written.
        paper: value of the paper.
    """

    at_least: int
    at_most: int
    stated: int
    null: int
    checked: int
    paper: int


@dataclass(frozen=True)
class Share:
    """Share of one group of cards.

    Attributes:
        cards: number of cards.
        patients: upper bound of the patients, from the cards that state them.
        percent: percentage of all patients.
        card_percent: percentage of all cards.
        paper: percentage of the paper, if it states one.
    """

    cards: int
    patients: int
    percent: float
    card_percent: float
    paper: float | None


@dataclass(frozen=True)
class Summary:
    """Comparison of the catalog with the paper. Tasks overlap: a dataset with two kinds of annotation counts in both."""

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


def summarize_cards(cards: Iterable[DatasetCard], without: Collection[str] = ()) -> Summary:
    """Sum the cards of real patients; exclude samples, synthetic data and the cards in ``without``.

    Raises:
        BadInput: an excluded card does not exist.
    """
    real = [card for card in cards if card.has_real_patients]
    for name in without:
        if name not in {card.id for card in real}:
            raise BadInput("no such card of real patients", where=name, remedy="omnimri catalog list shows the available cards")
    real = [card for card in real if card.id not in without]
    cards_by_id = {card.id: card for card in real}
    patients = {card.id: _unshared_bounds(card, "patients", cards_by_id)[1] for card in real}
    sourced = [card.sources[name] for card in real for name in STATISTICS if name in card.sources]
    return Summary(
        cards=len(real),
        paper_cards=PAPER_DATASETS,
        totals={name: _sum_statistic(real, name, cards_by_id) for name in COUNTS},
        regions=_compute_shares(_group_by(real, _region_names), PAPER_REGIONS, patients),
        anatomies=_compute_shares(_group_by(real, lambda card: [card.anatomy or UNSTATED]), PAPER_ANATOMIES, patients),
        tasks=_compute_shares(_group_by(real, lambda card: list(card.tasks) or [IMAGES_ONLY]), PAPER_TASKS, patients),
        access=_compute_shares(_group_by(real, lambda card: [card.access or UNSTATED]), {}, patients),
        figures=len(sourced),
        figures_checked=sum(source.checked for source in sourced),
    )


def _compute_shares(groups: dict[str, list[DatasetCard]], paper: dict[str, float], patients: dict[str, int]) -> dict[str, Share]:
    """Return the share of each group, most patients first and the catch-all groups last.

    Args:
        paper: percentages of the paper.
        patients: upper bound of the patients of every card, by id.
    """
    all_patients = sum(patients.values())
    shares = {}
    for name, members in groups.items():
        group_patients = sum(patients[card.id] for card in members)
        shares[name] = Share(
            cards=len(members),
            patients=group_patients,
            percent=_percent(group_patients, all_patients),
            card_percent=_percent(len(members), len(patients)),
            paper=paper.get(name),
        )
    catch_all = (SEVERAL, UNSTATED, IMAGES_ONLY)
    return dict(sorted(shares.items(), key=lambda item: (item[0] in catch_all, -item[1].patients, item[0])))


def _region_names(card: DatasetCard) -> list[str]:
    if not card.regions:
        return [UNSTATED]
    return [card.regions[0] if len(card.regions) == 1 else SEVERAL]


def _group_by(cards: list[DatasetCard], names: Callable[[DatasetCard], list[str]]) -> dict[str, list[DatasetCard]]:
    groups: dict[str, list[DatasetCard]] = {}
    for card in cards:
        for name in names(card):
            groups.setdefault(name, []).append(card)
    return groups


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _sum_statistic(cards: list[DatasetCard], name: str, cards_by_id: dict[str, DatasetCard]) -> Total:
    bounds = [_unshared_bounds(card, name, cards_by_id) for card in cards]
    stated = [card for card in cards if is_filled(card, name)]
    return Total(
        at_least=sum(at_least for at_least, _ in bounds),
        at_most=sum(at_most for _, at_most in bounds),
        stated=len(stated),
        null=len(cards) - len(stated),
        checked=sum(card.sources[name].checked for card in stated),
        paper=PAPER_COUNTS[name],
    )


def _unshared_bounds(card: DatasetCard, name: str, cards_by_id: dict[str, DatasetCard]) -> tuple[int, int]:
    """Return the bounds (at least, at most) of a statistic of a card, without what overlapping cards already state.

    Overlaps are counted in patients. For scans, volumes and slices only a complete overlap ("all") can be subtracted with
    certainty; for a partial overlap, everything in the other card may be shared.
    """
    value = getattr(card, name)
    if value is None:
        return 0, 0
    at_least = at_most = value
    for other, shared in card.overlaps.items():
        other_value = getattr(cards_by_id[other], name) if other in cards_by_id else None
        if other_value is None:
            continue
        if shared == "all":
            return 0, 0
        if shared is not None and name == "patients":
            at_least, at_most = at_least - shared, at_most - shared
        else:
            at_least -= min(value, other_value)
    return max(at_least, 0), max(at_most, 0)
