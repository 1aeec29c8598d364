"""Report page: one self-contained HTML file whose content security policy forbids every request."""

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

    from components.evaluation.task_result import Panel, TaskResult
    from components.evaluation.volume_viewer import Viewer

TEMPLATE = Path(__file__).with_name("report_page.html.j2")
NIIVUE = Path(__file__).with_name("vendor") / "niivue-0.69.0.umd.js"
"""NiiVue viewer (BSD 2-Clause, see LICENSE.niivue in the same folder), unchanged from its npm package."""


def _encode_figure(figure: Figure) -> str:
    """Encode a figure as PNG in a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _draw_panels(rows: Sequence[Sequence[Panel]]) -> str:
    """Draw rows of panels."""
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
    return _encode_figure(figure)


def _plot_sweep(rows: Sequence[SweepRow]) -> str:
    """Plot PSNR and SSIM over acceleration, with one panel for each kind of mask."""
    from matplotlib.figure import Figure

    kinds, metrics = list(dict.fromkeys(row.mask for row in rows)), ("PSNR, dB", "SSIM")
    figure = Figure(figsize=(3.1 * len(kinds), 4.6), layout="constrained")
    axes = figure.subplots(len(metrics), len(kinds), squeeze=False, sharex=True, sharey="row")
    for row_axes, metric in zip(axes, metrics, strict=True):
        for axis, kind in zip(row_axes, kinds, strict=True):
            points = sorted((row.acceleration, row.values[metric]) for row in rows if row.mask == kind)
            for method, style in (("model", "o-"), ("total variation", "s--"), ("zero-filled", "^:")):
                factors = [acceleration for acceleration, _ in points]
                axis.plot(factors, [values[method] for _, values in points], style, label=method, markersize=4)
            axis.set_xticks([acceleration for acceleration, _ in points])
            axis.grid(alpha=0.3)
        row_axes[0].set_ylabel(metric)
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set_title(kind, fontsize=10)
    axes[-1][0].set_xlabel("acceleration")
    axes[0][0].legend(fontsize=8)
    return _encode_figure(figure)


def _plot_structures(structures: Mapping[str, Sequence[float]]) -> str:
    """Plot the Dice of every case, one line for each structure, with its median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 0.8 + 0.32 * len(structures)), layout="constrained")
    axis = figure.subplots()
    for line, values in enumerate(structures.values()):
        ordered = sorted(values)
        spread = [line + 0.24 * ((i * 7) % 11 / 5 - 1) for i in range(len(ordered))]
        axis.plot(ordered, spread, "o", markersize=4, alpha=0.6)
        axis.plot([ordered[len(ordered) // 2]] * 2, [line - 0.3, line + 0.3], "k-", linewidth=1.5)
    axis.set_yticks(range(len(structures)), list(structures), fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("Dice")
    axis.grid(axis="x", alpha=0.3)
    return _encode_figure(figure)


def _plot_roc(scores: Sequence[float], truth: Sequence[bool]) -> str:
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(truth, scores)
    figure = Figure(figsize=(3.2, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(false, true, "o-", markersize=3)
    axis.plot([0, 1], [0, 1], ":", color="gray")
    axis.set_xlabel("false positives")
    axis.set_ylabel("true positives")
    return _encode_figure(figure)


def _plot_reliability(result: TaskResult) -> str:
    """Plot the observed frequency of yes over p(yes), before and after calibration."""
    from matplotlib.figure import Figure

    from components.evaluation.calibration import reliability

    assert result.roc is not None and result.uncalibrated is not None
    scores, truth = result.roc
    figure = Figure(figsize=(3.4, 3.0), layout="constrained")
    axis = figure.subplots()
    for values, label in ((result.uncalibrated, "before calibration"), (scores, "calibrated")):
        stated, observed, _ = reliability(values, truth)
        axis.plot(stated, observed, "o-", markersize=4, label=label)
    axis.plot([0, 1], [0, 1], ":", color="gray")
    axis.set_xlabel("p(yes)")
    axis.set_ylabel("share of yes")
    axis.legend(fontsize=8)
    return _encode_figure(figure)


def _plots(result: TaskResult) -> list[tuple[str, str]]:
    """Return (caption, picture) of a task's plots."""
    plots = []
    if result.sweep:
        plots.append((f"The same {result.sweep[0].cases} slices under other masks and accelerations.", _plot_sweep(result.sweep)))
    if result.structures:
        plots.append(("Dice of every case; the line is the median.", _plot_structures(result.structures)))
    if result.roc and len(set(result.roc[1])) == 2:
        plots.append(("ROC curve of p(yes).", _plot_roc(*result.roc)))
    if result.roc and result.uncalibrated:
        caption = "Reliability of p(yes) in ten bins; the calibration is fitted on validation patients."
        plots.append((caption, _plot_reliability(result)))
    return plots


def render_page(
    results: Mapping[str, TaskResult], facts: Mapping[str, Any], groups: Sequence[SubgroupRow], viewer: Viewer | None
) -> str:
    """Render the page.

    Args:
        facts: digests, settings and counts, shown without change.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows: list[ResultRow] = [row for result in results.values() for row in result.rows]
    return environment.from_string(TEMPLATE.read_text()).render(
        rows=rows,
        volumes=any(row.is_of_whole_volumes for row in rows),
        losing=[row for row in rows if row.verdict == "worse"],
        behind=[row for row in rows if row.behind and row.verdict != "worse"],
        pictures={task: _draw_panels(result.pictures) for task, result in results.items() if result.pictures},
        worst={task: _draw_panels(result.worst_pictures) for task, result in results.items() if result.worst_pictures},
        texts={task: result.texts for task, result in results.items() if result.texts},
        worst_texts={task: result.worst_texts for task, result in results.items() if result.worst_texts},
        plots={task: _plots(result) for task, result in results.items()},
        sweeps={task: result.sweep for task, result in results.items() if result.sweep},
        groups=groups,
        facts=facts,
        tasks=list(results),
        viewer=None if viewer is None else asdict(viewer),
        niivue="" if viewer is None else Markup(NIIVUE.read_text()),  # noqa: S704 (our own file)
    )
