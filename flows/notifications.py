"""Telling people that a run has ended: by a notification block of Prefect that ``OMNIMRI_NOTIFY`` names; else nobody."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

VARIABLE = "OMNIMRI_NOTIFY"

logger = logging.getLogger(__name__)


def notify(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Tell which run ended how, and where it is; no message of an error, which may name a file."""
    name = os.environ.get(VARIABLE)
    if not name:
        return
    from prefect.blocks.core import Block
    from prefect.utilities.urls import url_for

    try:
        block: Any = Block.load(name)
        block.notify(f"{flow.name} / {flow_run.name}: {state.name}\n{url_for(flow_run) or ''}", subject=f"OmniMRI: {state.name}")
    except Exception as error:  # a letter that cannot be sent does not fail the run; its text may hold the address, a secret
        logger.warning("%s=%s could not be told: %s", VARIABLE, name, type(error).__name__)
