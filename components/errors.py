"""Errors that a user can act on. Each message names the object, the fault and the remedy; none contains patient text."""

from __future__ import annotations


class OmniMRIError(Exception):
    """A failure a user can act on.

    Args:
        what: the fault, in one sentence.
        where: the file, field or setting at fault (paths of pseudonymized or user-named files only).
        remedy: what the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(": ".join(text for text in (where, what) if text) + (f" ({remedy})" if remedy else ""))


class BadInput(OmniMRIError):
    """The input, a setting or the usage is wrong: exit code 2."""

    exit_code = 2


class JobFailed(OmniMRIError):
    """A step ran and failed: exit code 1."""


class MachineFault(OmniMRIError):
    """The machine or a program, not the input, is at fault (disk full, no permission, I/O error, no memory, bug): exit code 1.

    It ends the run, and never puts an input into quarantine.
    """


class GateRefused(OmniMRIError):
    """A quality gate (validation or promotion) refused: exit code 1."""
