"""The order of samples: exact mixing ratios and a shuffled order, both computed from the number of the draw alone.

Of D sources, draw k goes, among those that lag behind their share (``w_d (k + 1) - n_d`` is at least 1 / (2 D - 2), n_d being the
draws of source d so far), to the one that would lag by a whole sample soonest. Every prefix is within one sample of the exact ratio
(Tijdeman, The chairman assignment problem, 1980). The simpler rule, to take the source that lags most, is not from five sources on.

Weights with a small common denominator are periodic: after one period every source has had exactly its share, and the rule starts
again. So a run can start anywhere without computing all previous draws.

The n-th draw of a source takes the n-th entry of a keyed permutation of each epoch, computed and never stored. So the state of a
training run's data is one integer, for any number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

ROUNDS = 4
TOLERANCE = 1e-9
MAX_PERIOD = 100_000


@dataclass(frozen=True)
class Source:
    """A set of samples.

    Attributes:
        name: determines the source's order, together with the seed.
        size: number of samples.
        weight: share; the weights of a mixture sum to 1.
    """

    name: str
    size: int
    weight: float


@dataclass(frozen=True)
class Draw:
    """One draw of a mixture.

    Attributes:
        number: number of the draw, from 0.
        source: index of the source in the mixture.
        index: index of the sample in the source.
        source_number: number of the draw among those of its source, from 0.
    """

    number: int
    source: int
    index: int
    source_number: int


@dataclass(frozen=True)
class Rank:
    """This process among those that train together: ``index`` of ``world_size``."""

    index: int = 0
    world_size: int = 1


ALONE = Rank()


def permute(position: int, size: int, key: str) -> int:
    """Return the image of ``position`` under the permutation of ``range(size)`` that ``key`` determines.

    A balanced Feistel network on the smallest even number of bits that can represent ``size``; results outside of the range are
    permuted again (Black and Rogaway, Ciphers with arbitrary finite domains, 2002).
    """
    half = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
    mask = (1 << half) - 1
    value = position
    while True:
        left, right = value >> half, value & mask
        for number in range(ROUNDS):
            mixed = hashlib.blake2b(f"{key}/{number}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "big") & mask)
        value = left << half | right
        if value < size:
            return value


class Mixture:
    """Draws from several sources.

    Raises:
        ValueError: weights that do not sum to 1, or a source with a weight and no samples.
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        if abs(sum(source.weight for source in sources) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1: {[source.weight for source in sources]}")
        empty = [source.name for source in sources if source.weight > 0 and source.size == 0]
        if empty:
            raise ValueError(f"no samples in {', '.join(empty)}: remove it from the mixture")
        self.sources, self.seed = tuple(sources), seed
        self._shares = [Fraction(source.weight).limit_denominator(MAX_PERIOD) for source in sources]
        period = math.lcm(*(share.denominator for share in self._shares))
        self.period = period if sum(self._shares) == 1 and period <= MAX_PERIOD else None

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """Yield draws without end from number ``start`` on; the same as those of an iterator that starts at 0."""
        number = start // self.period * self.period if self.period else 0
        while True:
            offsets = [int(share * number) for share in self._shares] if self.period else [0] * len(self.sources)
            counts = [0] * len(self.sources)
            for position in range(self.period) if self.period else itertools.count():
                source = self._most_urgent(position, counts)
                if number >= start:
                    yield self._draw(number, source, offsets[source] + counts[source])
                counts[source] += 1
                number += 1

    def _most_urgent(self, position: int, counts: list[int]) -> int:
        """Return the source of a draw by Tijdeman's rule."""
        if len(self.sources) == 1:
            return 0
        slack = 1 / (2 * len(self.sources) - 2)
        lags = [source.weight * (position + 1) - count for source, count in zip(self.sources, counts, strict=True)]
        candidates = [d for d, lag in enumerate(lags) if lag >= slack - TOLERANCE and self.sources[d].weight > 0]
        return min(candidates, key=lambda d: (1 - slack - lags[d]) / self.sources[d].weight)

    def _draw(self, number: int, source: int, source_number: int) -> Draw:
        name, size = self.sources[source].name, self.sources[source].size
        epoch, position = divmod(source_number, size)
        return Draw(number, source, permute(position, size, f"{self.seed}/{name}/{epoch}"), source_number)
