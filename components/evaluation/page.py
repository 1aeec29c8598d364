"""The report page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluation.records import ResultRow

if TYPE_CHECKING:
    from components.evaluation.tasks import Panel, TaskResult

TEMPLATE = Path(__file__).with_name("page.html.j2")


def _picture(rows: Sequence[Sequence[Panel]]) -> str:
    """Rows of panels as a PNG in a data URI."""
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
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def render(results: Mapping[str, TaskResult], facts: Mapping[str, Any]) -> str:
    """The page's text. ``facts`` are shown as they are: digests, settings, counts."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows: list[ResultRow] = [row for result in results.values() for row in result.rows]
    pictures = {task: _picture(result.pictures) for task, result in results.items() if result.pictures}
    losing = [row for row in rows if row.verdict == "worse"]
    behind = [row for row in rows if row.behind and row.verdict != "worse"]
    texts = {task: result.texts for task, result in results.items() if result.texts}
    return environment.from_string(TEMPLATE.read_text()).render(
        rows=rows, losing=losing, behind=behind, pictures=pictures, texts=texts, facts=facts, tasks=list(results)
    )
