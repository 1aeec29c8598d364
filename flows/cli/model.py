"""``omnimri model``: the network itself, without weights."""

from __future__ import annotations

from typing import Annotated

import typer

from components.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="The network: its sizes and what they cost.")

JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
SIDE, SLICES, TEXT = 256, 32, 128


@app.callback()
def _group() -> None:
    """Keep ``summary`` a word of its own while it is the only command."""


@app.command(epilog="Example: omnimri model summary --preset 7b")
def summary(
    preset: Annotated[str, typer.Option(help="debug, demo, 0.5b, 1.5b or 7b")] = "demo",
    side: Annotated[int, typer.Option(min=1, help="height and width of a slice, pixels")] = SIDE,
    slices: Annotated[int, typer.Option(min=2, help="slices of a volume")] = SLICES,
    text: Annotated[int, typer.Option(min=1, help="tokens of text beside the image")] = TEXT,
    as_json: JsonOption = False,
) -> None:
    """Parameters, operations and activation memory of a preset, for a slice and a volume; nothing is allocated."""
    from flows.cli.output import emit, table
    from model_core import OmniMRIConfig
    from model_core.accounting import SampleSize, costs, parameters

    try:
        config = OmniMRIConfig.from_preset(preset)
        sizes = {"slice": SampleSize(1, side, side, text), "volume": SampleSize(slices, side, side, text)}
        counted = {name: costs(config, size) for name, size in sizes.items()}
    except ValueError as error:
        raise BadInput(str(error), where="omnimri model summary", remedy="see --help for presets and sizes") from None
    rows = parameters(config)
    if as_json:
        emit({"preset": preset, "parameters": rows, "sizes": sizes, "costs": counted})
        return
    total, active = sum(row.total for row in rows), sum(row.active for row in rows)
    table(
        f"{preset}: parameters, millions",
        ["part", "all", "of one token"],
        [[row.part, f"{row.total / 1e6:,.2f}", f"{row.active / 1e6:,.2f}"] for row in rows]
        + [["together", f"{total / 1e6:,.2f}", f"{active / 1e6:,.2f}"]],
    )
    for name, size in sizes.items():
        shape = f"{size.depth} x {size.height} x {size.width} voxels, {size.text} tokens of text"
        together = [sum(getattr(row, key) for row in counted[name]) for key in ("flops", "kept", "checkpointed")]
        lines = [(row.part, row.flops, row.kept, row.checkpointed) for row in counted[name]]
        table(
            f"{preset}, one {name} ({shape}), bfloat16",
            ["part", "forward, GFLOP", "activations, MiB", "with checkpointing, MiB"],
            [
                [part, f"{flops / 1e9:,.2f}", f"{kept / 2**20:,.1f}", f"{less / 2**20:,.1f}"]
                for part, flops, kept, less in [*lines, ("together", *together)]
            ],
        )
