"""Pseudonyms: keyed one-way names for patients and UIDs, and a date shift for each patient (DICOM PS3.15, E.3.6)."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import BadInput
from components.home import Home
from components.settings import IngestionSettings

KEY_BYTES = 32
DEMO_KEY = hashlib.sha256(b"OmniMRI: published key of the sample datasets, which hide nothing").digest()
"""Same pseudonyms, and so the same bytes, on every machine. Only for what is generated or public already."""
LONGEST_SHIFT_DAYS = 3650


def load_key(settings: IngestionSettings, home: Home) -> bytes:
    """The key of this installation: the published demo key, the file that the settings name, or one made here at first use.

    Raises:
        BadInput: a key file that is missing or too short.
    """
    if settings.public_demo_key:
        return DEMO_KEY
    if settings.key_file is not None:
        if not settings.key_file.is_file() or len(settings.key_file.read_bytes()) < KEY_BYTES:
            raise BadInput(
                f"the key file must hold at least {KEY_BYTES} bytes",
                where=str(settings.key_file),
                remedy=f"head -c {KEY_BYTES} /dev/urandom > the file; keep it secret and safe",
            )
        return settings.key_file.read_bytes()
    return _own_key(home.root / "pseudonym.key")


def _own_key(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
    return path.read_bytes()


def check_key(key: bytes, card: DatasetCard) -> None:
    """Refuse the published key for anything but samples: whoever knows it can test whether a known patient is in the data.

    Raises:
        BadInput: the demo key for a dataset that is neither synthetic nor a public sample.
    """
    if key == DEMO_KEY and not (card.synthetic or card.public_sample):
        raise BadInput(
            "the published demo key would not protect these patients",
            where=f"ingestion.public_demo_key ({card.id})",
            remedy="set it to false: a secret key is then made and kept in the home folder",
        )


@dataclass(frozen=True)
class Pseudonyms:
    """Names derived from a secret key; the same input gives the same name, and no name leads back without the key."""

    key: bytes
    dataset_id: str

    def _keyed(self, kind: str, value: str) -> bytes:
        return hmac.new(self.key, f"{kind}\0{self.dataset_id}\0{value}".encode(), hashlib.sha256).digest()

    def patient(self, raw: str) -> str:
        """Name of a patient, the same in all files of the dataset."""
        return f"p{self._keyed('patient', raw).hex()[:12]}"

    def series(self, raw: str) -> str:
        """Name of a series."""
        return f"s{self._keyed('series', raw).hex()[:12]}"

    def uid(self, raw: str) -> str:
        """A DICOM UID in the place of another (2.25 form, PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._keyed('uid', raw)[:16], 'big')}"

    def shift_days(self, patient_raw: str) -> int:
        """Days by which a patient's dates move into the past, 1 to ten years: intervals stay."""
        return 1 + int.from_bytes(self._keyed("date", patient_raw)[:4], "big") % LONGEST_SHIFT_DAYS
