"""The mixture is exact in every prefix, shuffled in every epoch, and can start anywhere."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.training.mixture import Mixture, Source, permute

weights = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(lambda shares: [share / sum(shares) for share in shares])


def _mixture(shares: list[float], sizes: list[int]) -> Mixture:
    return Mixture([Source(f"s{i}", size, share) for i, (share, size) in enumerate(zip(shares, sizes, strict=True))], seed=3)


@given(shares=weights, draws=st.integers(1, 300))
def test_every_prefix_is_within_one_sample_of_the_exact_ratio(shares: list[float], draws: int) -> None:
    counts = [0] * len(shares)
    for number, draw in enumerate(islice(_mixture(shares, [7] * len(shares)).draws(), draws), start=1):
        counts[draw.source] += 1
        assert all(abs(count - share * number) <= 1 + 1e-9 for count, share in zip(counts, shares, strict=True))


@given(shares=weights, start=st.integers(0, 100))
def test_starting_anywhere_gives_the_same_draws(shares: list[float], start: int) -> None:
    sizes = [3 + 2 * i for i in range(len(shares))]
    whole = list(islice(_mixture(shares, sizes).draws(), start + 20))
    assert list(islice(_mixture(shares, sizes).draws(start), 20)) == whole[start:]


@given(size=st.integers(1, 400), key=st.text(max_size=5))
def test_every_epoch_sees_every_sample_once(size: int, key: str) -> None:
    assert sorted(permute(position, size, key) for position in range(size)) == list(range(size))


def test_a_late_start_equals_an_early_one_up_to_whole_periods() -> None:
    """The order of the sources repeats every period, the samples do not."""
    mixture = _mixture([0.8, 0.04, 0.07, 0.09], [11, 7, 5, 3])
    assert mixture.period == 100
    early, late = (list(islice(mixture.draws(start), 250)) for start in (0, 10**12))
    assert [draw.source for draw in early] == [draw.source for draw in late]
    assert [draw.source_number + round(10**12 * mixture.sources[draw.source].weight) for draw in early] == [
        draw.source_number for draw in late
    ]


def test_epochs_are_shuffled_differently() -> None:
    draws = list(islice(_mixture([1.0], [50]).draws(), 100))
    first, second = [d.index for d in draws[:50]], [d.index for d in draws[50:]]
    assert first != second and first != sorted(first) and sorted(first) == sorted(second)


def test_a_share_of_an_empty_source_is_rejected() -> None:
    with pytest.raises(ValueError, match="no samples in s1"):
        _mixture([0.5, 0.5], [4, 0])


TABLE_2 = {
    "vision pretraining": (1.0, 0.0, 0.0),
    "alignment": (0.0, 1.0, 0.0),
    "multimodal pretraining": (0.0, 0.8, 0.2),
    "instruction tuning": (0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("shares", TABLE_2.values(), ids=TABLE_2.keys())
def test_the_ratios_of_table_2_hold_at_every_prefix(shares: tuple[float, float, float]) -> None:
    """Every prefix is less than one sample off the exact number, and equal to it where that is an integer."""
    mixture = Mixture([Source(name, 100, share) for name, share in zip("ipr", shares, strict=True) if share], seed=7)
    positive = [share for share in shares if share]
    counts = [0] * len(positive)
    for number, draw in enumerate(islice(mixture.draws(), 2_000), start=1):
        counts[draw.source] += 1
        assert all(abs(count - share * number) < 1 - 1e-9 for count, share in zip(counts, positive, strict=True))
        if number % 5 == 0:
            assert counts == [round(share * number) for share in positive]
