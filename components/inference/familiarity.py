"""Familiarity of an image: the distance of its features from those of training images, with a threshold from validation patients.

Deep nearest neighbors (Sun et al., arXiv:2204.06507): the distance to the k-th nearest training image in the features of the
encoder. The threshold is the conformal quantile of validation patients (Angelopoulos and Bates, arXiv:2107.07511): an image like
theirs lies beyond it with a stated probability.

Shape letters: N images, F features, M side of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from components.files import atomic_file, read_json, write_json
from components.tasks.scope import FAMILIARITY, FEATURES
from model_core import OmniMRIForConditionalGeneration

NEIGHBOR = 3
"""The neighbor whose distance counts: one odd training image makes nothing familiar."""
FALSE_ALARMS = 0.05
"""Largest probability of a false alarm, if there are validation images enough."""
SMALLEST_DEVIATION = 0.05
"""Smallest standard deviation of a feature, relative to the mean of all: constant features do not decide."""
AGREEING = 5
"""Nearest training images that must all show one anatomy before an image is taken for it."""
BATCH = 8


@dataclass(frozen=True)
class Familiarity:
    """Distance of an image from the training images.

    Attributes:
        distance: in units in which training images have a standard deviation of 1.
        threshold: distance beyond which an image counts as unlike anything in training.
        false_alarms: probability that an image like those of validation patients is beyond it.
    """

    distance: float
    threshold: float
    false_alarms: float

    @property
    def is_unlike(self) -> bool:
        """Return whether the image is unlike anything in training."""
        return self.distance > self.threshold

    @property
    def warning(self) -> str:
        """A sentence that marks an image unlike anything in training; "" for any other."""
        if not self.is_unlike:
            return ""
        return (
            f"this image is unlike anything in training (distance {self.distance:.2f}, threshold {self.threshold:.2f}; "
            f"{self.false_alarms:.0%} of images like those of training are marked by mistake): do not rely on the answer"
        )


@dataclass(frozen=True)
class FamiliarImages:
    """The training images of a model in the features of its encoder.

    Attributes:
        features_NF: float32, standardized.
        mean_F, deviation_F: float32, of the features of the training images.
        threshold: of the distance.
        false_alarms: probability that an image of another patient is beyond the threshold.
        validation_images: number of images that the threshold rests on.
        test_images, test_alarms: number of images of test patients, and of those among them beyond the threshold.
        anatomies: of the training images; "" = not known, empty = not recorded.
        test_told, test_right: number of images of test patients with an anatomy decided by their features, and decided correctly.
    """

    features_NF: NDArray[np.float32]
    mean_F: NDArray[np.float32]
    deviation_F: NDArray[np.float32]
    threshold: float
    false_alarms: float
    validation_images: int
    test_images: int = 0
    test_alarms: int = 0
    anatomies: Sequence[str] = ()
    test_told: int = 0
    test_right: int = 0

    @classmethod
    def fit(cls, train_NF: NDArray[np.float32], validation_NF: NDArray[np.float32], test_NF: NDArray[np.float32]) -> FamiliarImages:
        """Return the training images with the threshold of validation images, and the alarms that test images raise.

        With n validation images, the threshold is the k-th smallest of their distances, k = ceil((n + 1) (1 - FALSE_ALARMS)), at
        most the largest: the probability of a false alarm is then 1 - k / (n + 1).
        """
        mean, deviation = train_NF.mean(0), train_NF.std(0)
        deviation = np.maximum(deviation, SMALLEST_DEVIATION * max(float(deviation.mean()), 1e-6)).astype(np.float32)
        fitted = cls(((train_NF - mean) / deviation).astype(np.float32), mean, deviation, math.inf, 0.0, len(validation_NF))
        distances = sorted(map(fitted.distance, validation_NF))
        rank = min(math.ceil((len(distances) + 1) * (1 - FALSE_ALARMS)), len(distances))
        threshold, rate = (distances[rank - 1], 1 - rank / (len(distances) + 1)) if distances else (math.inf, 0.0)
        alarms = sum(fitted.distance(one) > threshold for one in test_NF)
        return cls(fitted.features_NF, mean, deviation, threshold, rate, len(distances), len(test_NF), alarms)

    def with_anatomies(self, train: Sequence[str], test: Sequence[str], test_NF: NDArray[np.float32]) -> FamiliarImages:
        """Return the same images with their anatomies, and how often those of test images are decided correctly.

        Args:
            train, test: anatomy of each image; "" = not known.
        """
        known = replace(self, anatomies=tuple(train))
        told = [(known.anatomy(features), anatomy) for features, anatomy in zip(test_NF, test, strict=True)]
        return replace(
            known, test_told=sum(one is not None for one, _ in told), test_right=sum(one == right for one, right in told)
        )

    def _distances(self, features_F: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distances of an image to the N training images, per feature."""
        standardized = (features_F - self.mean_F) / self.deviation_F
        return np.asarray(np.sqrt(((self.features_NF - standardized) ** 2).mean(1)))

    def distance(self, features_F: NDArray[np.float32]) -> float:
        """Return the distance of an image to its k-th nearest training image, per feature."""
        distances = self._distances(features_F)
        return float(np.partition(distances, min(NEIGHBOR, len(distances)) - 1)[min(NEIGHBOR, len(distances)) - 1])

    def anatomy(self, features_F: NDArray[np.float32]) -> str | None:
        """Return the anatomy that all of the :data:`AGREEING` nearest training images show; None if they differ."""
        if len(set(self.anatomies)) < 2 or len(self.anatomies) < AGREEING:
            return None
        nearest = np.argsort(self._distances(features_F), kind="stable")[:AGREEING]
        found = {self.anatomies[index] for index in nearest}
        return next(iter(found)) or None if len(found) == 1 else None

    def compare(self, features_F: NDArray[np.float32]) -> Familiarity:
        """Return the familiarity of an image."""
        return Familiarity(self.distance(features_F), self.threshold, self.false_alarms)

    def write(self, folder: Path) -> None:
        """Write the figures as JSON and the features as a NumPy archive."""
        figures = {name: value for name, value in asdict(self).items() if not name.endswith("F")}
        write_json(folder / FAMILIARITY, figures)
        with atomic_file(folder / FEATURES) as temporary, temporary.open("wb") as stream:
            np.savez(stream, features=self.features_NF.astype(np.float16), mean=self.mean_F, deviation=self.deviation_F)

    @classmethod
    def read(cls, *folders: Path) -> FamiliarImages | None:
        """Read from the first folder that has the files; None without any: then no image is marked."""
        found = next((folder for folder in folders if (folder / FAMILIARITY).is_file()), None)
        if found is None:
            return None
        with np.load(found / FEATURES, allow_pickle=False) as stored:
            arrays = stored["features"].astype(np.float32), stored["mean"], stored["deviation"]
        return cls(*arrays, **read_json(found / FAMILIARITY))


@torch.no_grad()
def encode(model: OmniMRIForConditionalGeneration, tiles: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the features of (M, M) tiles, (N, F): mean and standard deviation of every channel of every level of the encoder."""
    found: list[NDArray[np.float32]] = []
    for first in range(0, len(tiles), BATCH):
        pixels = torch.from_numpy(np.stack(tiles[first : first + BATCH]).astype(np.float32))[:, None, None]
        levels = [level.flatten(1, -2).float() for level in model.vision.encode_in_slabs(pixels)]
        found.append(torch.cat([part for level in levels for part in (level.mean(1), level.std(1))], 1).numpy())
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)
