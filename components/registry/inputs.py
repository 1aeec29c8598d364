"""The inputs of a registration: the digests that decide whether a model becomes a new version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RegistrationInputs:
    """Digests of everything that makes a version different from the versions before it.

    Attributes:
        weights: digest of the saved model.
        evaluation: digest of the evaluation's inputs.
        data: the data version.
        settings: digest of all settings.
    """

    weights: str
    evaluation: str
    data: str
    settings: str

    def by_name(self) -> dict[str, str]:
        """Return each digest under the name of the input in plain words."""
        return {"model": self.weights, "evaluation": self.evaluation, "data version": self.data, "settings": self.settings}

    def tags(self) -> dict[str, str]:
        """Return the tags of the version in MLflow that carry the inputs."""
        return {
            "weights_digest": self.weights,
            "evaluation_digest": self.evaluation,
            "data_digest": self.data,
            "settings_digest": self.settings,
        }

    def match(self, tags: Mapping[str, str]) -> bool:
        """Return whether a version with these tags was registered from the same inputs."""
        return all(tags.get(name) == value for name, value in self.tags().items())
