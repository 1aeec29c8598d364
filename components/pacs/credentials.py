"""Credentials of an archive: a user name and password, or a bearer token, from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from components.errors import BadInput


@dataclass(frozen=True)
class Credentials:
    """Credentials for one server; their text form shows none of them."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def exist(self) -> bool:
        """Return whether there are any."""
        return bool(self.user or self.token)


CredentialsOf = Callable[[str], Credentials]
"""Return the credentials for the name of a server in the settings, "" for a server without a name."""


def variable(name: str, part: str) -> str:
    """Return the environment variable of a part (``USER``, ``PASSWORD``, ``TOKEN``) of a server's credentials."""
    middle = f"{name.upper().replace('-', '_')}_" if name else ""
    return f"OMNIMRI_PACS_{middle}{part}"


def credentials_from_environment(name: str) -> Credentials:
    """Return ``OMNIMRI_PACS_<NAME>_USER`` and ``_PASSWORD``, or ``_TOKEN``; without a name, ``OMNIMRI_PACS_USER`` and so on.

    Raises:
        BadInput: a user without a password or the other way round, or a token beside them.
    """
    user, password, token = (os.environ.get(variable(name, part), "") for part in ("USER", "PASSWORD", "TOKEN"))
    return _checked(Credentials(user, password, token), variable(name, "..."))


def parse_credentials(text: str, where: str) -> Credentials:
    """Read credentials from a secret: JSON with ``user`` and ``password``, or with ``token``; any other text is a token.

    Raises:
        BadInput: the JSON has other fields.
    """
    try:
        content = json.loads(text)
    except ValueError:
        return Credentials(token=text.strip())
    if not isinstance(content, dict) or not set(content) <= {"user", "password", "token"}:
        raise BadInput("not credentials", where=where, remedy='store {"user": ..., "password": ...} or {"token": ...}')
    return _checked(Credentials(**{name: str(value) for name, value in content.items()}), where)


def _checked(credentials: Credentials, where: str) -> Credentials:
    if bool(credentials.user) != bool(credentials.password) or (credentials.token and credentials.user):
        raise BadInput("incomplete or contradictory credentials", where=where, remedy="give user and password, or a token")
    return credentials
