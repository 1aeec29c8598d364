"""``omnimri schema``: the JSON schemas of what OmniMRI writes."""

from __future__ import annotations

import json

import typer

app = typer.Typer(no_args_is_help=True, help="JSON schemas of what OmniMRI writes.")


@app.callback()
def _group() -> None:
    """JSON schemas of what OmniMRI writes."""


@app.command("description", epilog="Example: omnimri schema description > description.schema.json")
def description() -> None:
    """Print the JSON schema of the hierarchical description (Fig. 2 of the paper)."""
    from components.curation.text.template import HierarchicalDescription

    print(json.dumps(HierarchicalDescription.model_json_schema(), indent=1))
