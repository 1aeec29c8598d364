"""Pseudonyms: keyed one-way names of patients and UIDs, and a date shift per patient (DICOM PS3.15, E.3.6)."""

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
"""Published key that yields the same pseudonyms, and so the same bytes, on every machine. Only for synthetic or public data."""
MAX_SHIFT_DAYS = 3650


def load_key(settings: IngestionSettings, home: Home) -> bytes:
    """Return the pseudonym key: the published demo key, the configured key file, or a key created in the home folder.

    Raises:
        BadInput: the key file is missing or too short.
    """
    if settings.public_demo_key:
        return DEMO_KEY
    if settings.key_file is not None:
        if not settings.key_file.is_file() or len(settings.key_file.read_bytes()) < KEY_BYTES:
            raise BadInput(
                f"the key file must contain at least {KEY_BYTES} bytes",
                where=str(settings.key_file),
                remedy=f"head -c {KEY_BYTES} /dev/urandom > the file; keep it secret and safe",
            )
        return settings.key_file.read_bytes()
    return _load_or_create_key(home.root / "pseudonym.key")


def _load_or_create_key(path: Path) -> bytes:
    """Read a key, or create it with permissions 0600."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
    return path.read_bytes()


def check_key(key: bytes, card: DatasetCard) -> None:
    """Reject the published key for real patients: anyone who knows it can test whether a given patient is in the data.

    Raises:
        BadInput: the demo key is used for a dataset that is neither synthetic nor a public sample.
    """
    if key == DEMO_KEY and not (card.synthetic or card.public_sample):
        raise BadInput(
            "the published demo key would not protect these patients",
            where=f"ingestion.public_demo_key ({card.id})",
            remedy="set it to false: a secret key is then created in the home folder",
        )


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms of a dataset, derived from a secret key by HMAC-SHA256.

    The same input yields the same pseudonym; without the key, a pseudonym does not lead back to its input.
    """

    key: bytes
    dataset_id: str

    def _digest(self, kind: str, value: str) -> bytes:
        text = f"{kind}\0{self.dataset_id}\0{value}"  # a file name that is no UTF-8 contains lone surrogates
        return hmac.new(self.key, text.encode(errors="surrogatepass"), hashlib.sha256).digest()

    def patient(self, raw: str) -> str:
        """Return the pseudonym of a patient, the same in all files of the dataset."""
        return f"p{self._digest('patient', raw).hex()[:12]}"

    def series(self, raw: str) -> str:
        """Return the pseudonym of a series."""
        return f"s{self._digest('series', raw).hex()[:12]}"

    def uid(self, raw: str) -> str:
        """Return the UID that replaces a DICOM UID (UUID-derived form 2.25, PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest('uid', raw)[:16], 'big')}"

    def shift_days(self, patient_raw: str) -> int:
        """Return the days by which a patient's dates are moved into the past, 1 to 3650; intervals are preserved."""
        return 1 + int.from_bytes(self._digest("date", patient_raw)[:4], "big") % MAX_SHIFT_DAYS
