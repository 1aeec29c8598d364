"""Notifications at the end of a run, through the Prefect block that ``OMNIMRI_NOTIFY`` names; none without it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

VARIABLE = "OMNIMRI_NOTIFY"

logger = logging.getLogger(__name__)


def notify(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Send the name, the final state and the address of a run, but no error message, since that may name a file."""
    name = os.environ.get(VARIABLE)
    if not name:
        return
    from prefect.blocks.core import Block
    from prefect.utilities.urls import url_for

    try:
        block: Any = Block.load(name)
        block.notify(f"{flow.name} / {flow_run.name}: {state.name}\n{url_for(flow_run) or ''}", subject=f"OmniMRI: {state.name}")
    except Exception as error:  # a notification must not fail a run; the error may contain the secret address
        logger.warning("no notification through %s=%s: %s", VARIABLE, name, type(error).__name__)
