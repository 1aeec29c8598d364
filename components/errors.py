"""The three ways OmniMRI says no. Each names the thing, the fault and the remedy; none carries patient text."""

from __future__ import annotations


class OmniMRIError(Exception):
    """A failure a user can act on.

    Args:
        what: the fault, in one sentence.
        where: file, field or setting that it is about (paths only of pseudonymised or user-named files).
        remedy: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(": ".join(part for part in (where, what) if part) + (f" ({remedy})" if remedy else ""))


class BadInput(OmniMRIError):
    """The input, a setting or the usage is wrong: exit code 2."""

    exit_code = 2


class JobFailed(OmniMRIError):
    """A step ran and failed: exit code 1."""


class GateRefused(OmniMRIError):
    """A quality gate (validation or promotion) said no: exit code 1."""
