"""Pseudonyms: keyed one-way names of patients and UIDs, and a date shift per patient (DICOM PS3.15, E.3.6)."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import BadInput
from components.files import read_json, write_json
from components.home import Home
from components.settings import IngestionSettings

KEY_BYTES = 32
KEY_FILE = "pseudonym.key"
"""Name of an installation's own key, in its home folder."""
KEYS = "keys.json"
"""File of ``data/``, versioned with it: dataset -> fingerprint of the secret key of its pseudonyms."""
DEMO_KEY = hashlib.sha256(b"OmniMRI: published key of the sample datasets, which hide nothing").digest()
"""Published key that yields the same pseudonyms, and so the same bytes, on every machine. Only for synthetic or public data."""
MAX_SHIFT_DAYS = 3650


def load_key(settings: IngestionSettings, home: Home) -> bytes:
    """Return the pseudonym key: the published demo key, the configured key file, or a key created in the home folder.

    Raises:
        BadInput: the key file is missing or too short, or ``data/`` was pseudonymized with a key that this home does not have.
    """
    if settings.public_demo_key:
        return DEMO_KEY
    if settings.key_file is not None:
        return _read_key(settings.key_file)
    path = home.root / KEY_FILE
    if not path.exists():
        if recorded := sorted(_fingerprints(home.data)):
            raise BadInput(
                "data/ has the key of another installation: with a new one, patients who withdrew would come back under new names",
                where=f"{path}, {home.data / KEYS} ({', '.join(recorded)})",
                remedy=f"copy {KEY_FILE} of that installation's home to this place, or name it as ingestion.key_file",
            )
        _create_key(path)
    return _read_key(path)


def find_key(settings: IngestionSettings, home: Home) -> bytes | None:
    """Return the key as :func:`load_key` does, but create none: None where the first ingestion will create it."""
    is_new = not settings.public_demo_key and settings.key_file is None and not (home.root / KEY_FILE).exists()
    return None if is_new and not _fingerprints(home.data) else load_key(settings, home)


def _read_key(path: Path) -> bytes:
    key = path.read_bytes() if path.is_file() else b""
    if len(key) < KEY_BYTES:
        raise BadInput(
            f"the key file must contain at least {KEY_BYTES} bytes",
            where=str(path),
            remedy=f"restore it from its backup; for data without a key yet: head -c {KEY_BYTES} /dev/urandom > the file",
        )
    return key


def _create_key(path: Path) -> None:
    """Create a key with permissions 0600; it appears complete or not at all, and the first of two processes decides it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()


def key_fingerprint(key: bytes, dataset_id: str) -> str:
    """Return 16 hexadecimal characters that tell keys apart; they do not reveal the key."""
    return hmac.new(key, f"fingerprint\0{dataset_id}".encode(), hashlib.sha256).hexdigest()[:16]


def _fingerprints(data: Path) -> dict[str, str]:
    """Return dataset -> fingerprint of the secret key that its pseudonyms were made with."""
    return dict(read_json(data / KEYS)) if (data / KEYS).exists() else {}


def require_same_key(keys: Iterable[bytes], dataset_id: str, data: Path) -> bool:
    """Check that one of the keys made the pseudonyms of a dataset; return whether a fingerprint proves it.

    Raises:
        BadInput: another key did.
    """
    recorded = _fingerprints(data).get(dataset_id)
    if recorded is not None and recorded not in {key_fingerprint(key, dataset_id) for key in keys}:
        raise BadInput(
            "its pseudonyms were made with another key: patients who withdrew would come back under new names",
            where=f"{dataset_id} ({data / KEYS})",
            remedy=f"use the {KEY_FILE} of the installation that ingested it first, in this home or as ingestion.key_file",
        )
    return recorded is not None


def claim_key(key: bytes, dataset_id: str, data: Path) -> None:
    """Record the key's fingerprint in ``data/`` with the first ingestion of a dataset; refuse another key later.

    The published demo key is not recorded: it hides nothing.

    Raises:
        BadInput: the dataset was pseudonymized with another key.
    """
    require_same_key((key,), dataset_id, data)
    recorded = _fingerprints(data)
    if key != DEMO_KEY and dataset_id not in recorded:
        write_json(data / KEYS, {**recorded, dataset_id: key_fingerprint(key, dataset_id)})


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

    def visit(self, patient: str, raw: str) -> str:
        """Return the pseudonym of a patient's visit; "" without a name of it."""
        name = "\0".join((patient, raw))
        return f"v{self._digest('visit', name).hex()[:12]}" if raw else ""

    def uid(self, raw: str) -> str:
        """Return the UID that replaces a DICOM UID (UUID-derived form 2.25, PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest('uid', raw)[:16], 'big')}"

    def shift_days(self, patient_raw: str) -> int:
        """Return the days by which a patient's dates are moved into the past, 1 to 3650; intervals are preserved."""
        return 1 + int.from_bytes(self._digest("date", patient_raw)[:4], "big") % MAX_SHIFT_DAYS
