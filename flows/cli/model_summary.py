"""``omnimri model``: the network without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput
from flows.cli.options import JsonOption

if TYPE_CHECKING:
    from model_core.accounting import SampleSize

HELP = "Show the sizes and costs of the network."
app = typer.Typer(no_args_is_help=True, help=HELP)
SIDE, SLICES, TEXT = 256, 32, 128


@app.callback(help=HELP)
def _group() -> None:
    """Keep ``summary`` a word of its own while it is the only command."""


@app.command(epilog="Example: omnimri model summary --preset 7b")
def summary(
    preset: Annotated[str, typer.Option(help="debug, demo, gpu8, gpu24, gpu48, 0.5b, 1.5b or 7b")] = "demo",
    side: Annotated[int, typer.Option(min=1, help="height and width of a slice, pixels")] = SIDE,
    slices: Annotated[int, typer.Option(min=2, help="slices of a volume")] = SLICES,
    text: Annotated[int, typer.Option(min=1, help="text tokens beside the image")] = TEXT,
    as_json: JsonOption = False,
) -> None:
    """Count the parameters, operations and activation memory of a preset for a slice and a volume; nothing is allocated."""
    from flows.cli.output import emit
    from model_core import OmniMRIConfig
    from model_core.accounting import SampleSize, count_parameters, estimate_costs

    try:
        config = OmniMRIConfig.from_preset(preset)
        sizes = {"slice": SampleSize(1, side, side, text), "volume": SampleSize(slices, side, side, text)}
        counted = {name: estimate_costs(config, size) for name, size in sizes.items()}
    except ValueError as error:
        raise BadInput(str(error), where="omnimri model summary", remedy="see --help for presets and sizes") from None
    rows = count_parameters(config)
    if as_json:
        emit({"preset": preset, "parameters": rows, "sizes": sizes, "costs": counted})
        return
    _print_parameters(preset, rows)
    for name, size in sizes.items():
        _print_costs(preset, name, size, counted[name])


def _print_parameters(preset: str, rows: list) -> None:
    from flows.cli.output import table

    millions = [[row.part, row.total / 1e6, row.active / 1e6] for row in rows]
    millions.append(["sum", sum(row.total for row in rows) / 1e6, sum(row.active for row in rows) / 1e6])
    cells = [[part, f"{total:,.2f}", f"{active:,.2f}"] for part, total, active in millions]
    table(f"{preset}: parameters, millions", ["part", "total", "active for a token"], cells)


def _print_costs(preset: str, name: str, size: SampleSize, rows: list) -> None:
    from flows.cli.output import table

    shape = f"{size.depth} x {size.height} x {size.width} voxels, {size.text} text tokens"
    costs = [(row.part, row.flops, row.kept, row.checkpointed) for row in rows]
    costs.append(("sum", *(sum(getattr(row, key) for row in rows) for key in ("flops", "kept", "checkpointed"))))
    cells = [
        [part, f"{flops / 1e9:,.2f}", f"{kept / 2**20:,.1f}", f"{checkpointed / 2**20:,.1f}"]
        for part, flops, kept, checkpointed in costs
    ]
    columns = ["part", "forward, GFLOP", "activations, MiB", "with checkpointing, MiB"]
    table(f"{preset}, one {name} ({shape}), bfloat16", columns, cells)
