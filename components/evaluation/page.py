"""The report page: one HTML file that needs nothing else, and may load nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluation.results import ResultRow, SubgroupRow, SweepRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from components.evaluation.tasks import Panel, TaskResult
    from components.evaluation.viewer import Viewer

TEMPLATE = Path(__file__).with_name("page.html.j2")
NIIVUE = Path(__file__).with_name("vendor") / "niivue-0.69.0.umd.js"
"""The viewer (BSD 2-Clause, LICENSE.niivue beside it), as its npm package has it."""


def _inlined(figure: Figure) -> str:
    """A figure as PNG in a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _picture(rows: Sequence[Sequence[Panel]]) -> str:
    """Rows of panels."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.1 * columns, 2.25 * len(rows)), layout="constrained")
    for row_axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in row_axes:
            axis.set_axis_off()
        for axis, panel in zip(row_axes, row, strict=False):
            axis.imshow(panel.image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(panel.title, fontsize=9)
            for row0, col0, row1, col1 in panel.boxes:
                axis.add_patch(Rectangle((col0, row0), col1 - col0, row1 - row0, fill=False, edgecolor="orange", linewidth=1.5))
    return _inlined(figure)


def _sweep(rows: Sequence[SweepRow]) -> str:
    """PSNR and SSIM over acceleration, a panel for each kind of mask."""
    from matplotlib.figure import Figure

    kinds, metrics = list(dict.fromkeys(row.mask for row in rows)), ("PSNR, dB", "SSIM")
    figure = Figure(figsize=(3.1 * len(kinds), 4.6), layout="constrained")
    axes = figure.subplots(len(metrics), len(kinds), squeeze=False, sharex=True, sharey="row")
    for row_axes, metric in zip(axes, metrics, strict=True):
        for axis, kind in zip(row_axes, kinds, strict=True):
            points = sorted((row.acceleration, row.values[metric]) for row in rows if row.mask == kind)
            for who, style in (("model", "o-"), ("total variation", "s--"), ("zero-filled", "^:")):
                axis.plot([at for at, _ in points], [values[who] for _, values in points], style, label=who, markersize=4)
            axis.set_xticks([at for at, _ in points])
            axis.grid(alpha=0.3)
        row_axes[0].set_ylabel(metric)
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set_title(kind, fontsize=10)
    axes[-1][0].set_xlabel("acceleration")
    axes[0][0].legend(fontsize=8)
    return _inlined(figure)


def _structures(structures: Mapping[str, Sequence[float]]) -> str:
    """Dice of every case, a column for each structure, with its median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.3 * len(structures), 3.0), layout="constrained")
    axis = figure.subplots()
    for place, values in enumerate(structures.values()):
        ordered = sorted(values)
        spread = [place + 0.24 * ((i * 7) % 11 / 5 - 1) for i in range(len(ordered))]
        axis.plot(spread, ordered, "o", markersize=4, alpha=0.6)
        axis.plot([place - 0.3, place + 0.3], [ordered[len(ordered) // 2]] * 2, "k-", linewidth=1.5)
    axis.set_xticks(range(len(structures)), list(structures), fontsize=9)
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("Dice")
    axis.grid(axis="y", alpha=0.3)
    return _inlined(figure)


def _roc(scores: Sequence[float], truth: Sequence[bool]) -> str:
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(truth, scores)
    figure = Figure(figsize=(3.2, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(false, true, "o-", markersize=3)
    axis.plot([0, 1], [0, 1], ":", color="gray")
    axis.set_xlabel("false positives")
    axis.set_ylabel("true positives")
    return _inlined(figure)


def _curves(result: TaskResult) -> list[tuple[str, str]]:
    """(caption, picture) of a task's plots."""
    made = []
    if result.sweep:
        made.append((f"The same {result.sweep[0].cases} slices under other masks and accelerations.", _sweep(result.sweep)))
    if result.structures:
        made.append(("Dice of every case; the line is the median.", _structures(result.structures)))
    if result.roc and len(set(result.roc[1])) == 2:
        made.append(("ROC curve of p(yes).", _roc(*result.roc)))
    return made


def render(results: Mapping[str, TaskResult], facts: Mapping[str, Any], groups: Sequence[SubgroupRow], shown: Viewer | None) -> str:
    """The page's text. ``facts`` are shown as they are: digests, settings, counts."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows: list[ResultRow] = [row for result in results.values() for row in result.rows]
    return environment.from_string(TEMPLATE.read_text()).render(
        rows=rows,
        losing=[row for row in rows if row.verdict == "worse"],
        behind=[row for row in rows if row.behind and row.verdict != "worse"],
        pictures={task: _picture(result.pictures) for task, result in results.items() if result.pictures},
        worst={task: _picture(result.worst_pictures) for task, result in results.items() if result.worst_pictures},
        texts={task: result.texts for task, result in results.items() if result.texts},
        worst_texts={task: result.worst_texts for task, result in results.items() if result.worst_texts},
        curves={task: _curves(result) for task, result in results.items()},
        sweep=[row for result in results.values() for row in result.sweep],
        groups=groups,
        facts=facts,
        tasks=list(results),
        viewer=None if shown is None else asdict(shown),
        niivue="" if shown is None else Markup(NIIVUE.read_text()),  # noqa: S704 (our own file)
    )
