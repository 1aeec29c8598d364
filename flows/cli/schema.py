"""``omnimri schema``: JSON schemas of the records that OmniMRI writes."""

from __future__ import annotations

import json

import typer

HELP = "Print JSON schemas of the records that OmniMRI writes."
app = typer.Typer(no_args_is_help=True, help=HELP)


@app.callback(help=HELP)
def _group() -> None:
    """Keep ``description`` a word of its own while it is the only command."""


@app.command("description", epilog="Example: omnimri schema description > description.schema.json")
def description() -> None:
    """Print the JSON schema of the hierarchical description (Fig. 2 of the paper)."""
    from components.curation.text.template import HierarchicalDescription

    print(json.dumps(HierarchicalDescription.model_json_schema(), indent=1))
