"""Credentials of image archives: from the environment, else from a Secret block of Prefect."""

from __future__ import annotations

import logging

from components.pacs.credentials import Credentials, credentials_from_environment, parse_credentials
from flows.server.temporary_server import kept_server

logger = logging.getLogger(__name__)


def secret_block(name: str) -> str:
    """Return the name of the Secret block of a server of ``pacs.servers``."""
    return f"omnimri-pacs-{name}"


def find_credentials(name: str) -> Credentials:
    """Return the credentials of a server; none if neither the environment nor a Secret block has any.

    Prefect is asked only for servers that the settings name, and only where ``PREFECT_API_URL`` says which server has the blocks.

    Raises:
        BadInput: incomplete or contradictory credentials.
    """
    credentials = credentials_from_environment(name)
    if credentials.exist or not name or not kept_server():
        return credentials
    from prefect.blocks.system import Secret

    block = secret_block(name)
    try:
        value = Secret.load(block).get()  # type: ignore[union-attr]  # a coroutine only in asynchronous code
    except ValueError:
        return credentials  # no such block
    except Exception as error:  # the message may contain the secret
        logger.warning("no credentials from the Secret block %s: %s", block, type(error).__name__)
        return credentials
    return parse_credentials(value if isinstance(value, str) else str(value), f"Secret block {block}")
