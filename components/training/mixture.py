"""Which sample comes next: exact mixing ratios and a shuffled order, both computed from one number, the draw's.

Of D sources, draw k goes, among those that are behind (``w_d (k + 1) - n_d`` is at least 1 / (2 D - 2), n_d being its draws
so far), to the one that would be a whole sample behind soonest. Every prefix is within one sample of the exact ratio (Tijdeman, The
chairman assignment problem, 1980). To take the one furthest behind is simpler and is not, from five sources on.

Weights with a small common denominator repeat: after so many draws every source has had exactly its share, and the rule begins
anew. So a run can start anywhere without going through all draws before.

The n-th draw of a source takes the n-th entry of a keyed permutation of each epoch, computed and never stored. So the state of a
training run's data is one integer, whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

ROUNDS = 4
ROUNDING = 1e-9
LONGEST_PERIOD = 100_000


@dataclass(frozen=True)
class Source:
    """A set of samples.

    Attributes:
        name: decides its order, together with the seed.
        size: number of samples.
        weight: its share; the weights of a mixture sum to 1.
    """

    name: str
    size: int
    weight: float


@dataclass(frozen=True)
class Draw:
    """One draw: the ``index``-th sample of ``source`` (position in the mixture's sources), and the source's draws before it."""

    number: int
    source: int
    index: int
    before: int


def permuted(position: int, size: int, key: str) -> int:
    """Where ``position`` goes in the permutation of ``range(size)`` that ``key`` names.

    A balanced Feistel network on the smallest even number of bits that hold ``size``; results outside of the range walk on
    (Black and Rogaway, Ciphers with arbitrary finite domains, 2002).
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
            raise ValueError(f"no samples in {', '.join(empty)}: take it out of the mixture")
        self.sources, self.seed = tuple(sources), seed
        self._shares = [Fraction(source.weight).limit_denominator(LONGEST_PERIOD) for source in sources]
        period = math.lcm(*(share.denominator for share in self._shares))
        self.period = period if sum(self._shares) == 1 and period <= LONGEST_PERIOD else None

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """Endless draws from number ``start`` on; the same as those of an iterator that began at 0."""
        number = start // self.period * self.period if self.period else 0
        while True:
            before = [int(share * number) for share in self._shares] if self.period else [0] * len(self.sources)
            counts = [0] * len(self.sources)
            for place in range(self.period) if self.period else itertools.count():
                chosen = self._most_urgent(place, counts)
                if number >= start:
                    yield self._draw(number, chosen, before[chosen] + counts[chosen])
                counts[chosen] += 1
                number += 1

    def _most_urgent(self, number: int, counts: list[int]) -> int:
        """Tijdeman's rule."""
        if len(self.sources) == 1:
            return 0
        slack = 1 / (2 * len(self.sources) - 2)
        behind = [source.weight * (number + 1) - count for source, count in zip(self.sources, counts, strict=True)]
        candidates = [d for d, claim in enumerate(behind) if claim >= slack - ROUNDING and self.sources[d].weight > 0]
        return min(candidates, key=lambda d: (1 - slack - behind[d]) / self.sources[d].weight)

    def _draw(self, number: int, chosen: int, before: int) -> Draw:
        source = self.sources[chosen]
        epoch, position = divmod(before, source.size)
        return Draw(number, chosen, permuted(position, source.size, f"{self.seed}/{source.name}/{epoch}"), before)
