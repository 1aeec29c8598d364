"""Custom expectations about affines, descriptions, measurements and boxes, each based on a predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial
from pydantic import ValidationError

from components.curation.text.template import HierarchicalDescription
from model_core.boxes import GRID


def has_stored_orientation(affine: Iterable[float]) -> bool:
    """Return whether an index -> RAS+ affine (16 numbers) has the orientation of the store: not mirrored, sheared or degenerate.

    Slices run superior, posterior or left; with them, rows and columns form a left-handed frame, as radiologists view images.
    """
    matrix = np.asarray(list(affine), dtype=np.float64).reshape(4, 4)[:3, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(matrix).all() or lengths.min() <= 0:
        return False
    cosines = matrix / lengths
    return bool(np.linalg.det(cosines) < -0.98)


def uses_vocabulary(fields: Mapping[str, str]) -> bool:
    """Return whether the fields of a description are those of the template, with words of its vocabularies."""
    try:
        HierarchicalDescription.from_fields(dict(fields))
    except ValidationError:
        return False
    return True


def are_plausible(measures: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether sizes (mm), volumes (ml) and relative signals are anatomically plausible and consistent.

    A structure is at most 600 mm long, and its volume is at most that of as many cubes of its size as it has parts.
    """
    for measure in measures:
        size_mm, volume_ml, parts = measure["size_mm"], measure["volume_ml"], measure["count"] or 1
        if not 0 < size_mm <= 600:
            return False
        if volume_ml is not None and not 0 < volume_ml * 1000 <= size_mm**3 * parts * 1.01:
            return False
        if measure["signal"] is not None and not 0 <= measure["signal"] <= 100:
            return False
    return True


def are_inside_image(boxes: Collection[Mapping[str, Any]]) -> bool:
    """Return whether every box is inside the image or volume (0-255 along each axis), start before end."""
    axes = [[axis for axis in ("row", "col", "slice") if f"{axis}0" in box] for box in boxes]
    return all(0 <= box[f"{axis}0"] < box[f"{axis}1"] < GRID for box, names in zip(boxes, axes, strict=True) for axis in names)


def _apply(column: pd.Series, predicate: Callable[[Any], bool]) -> pd.Series:
    return column.map(predicate).astype(bool)


class _StoredOrientation(ColumnMapMetricProvider):
    condition_metric_name = "column_values.stored_orientation"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _apply(column, has_stored_orientation)


class _Vocabulary(ColumnMapMetricProvider):
    condition_metric_name = "column_values.description_in_vocabulary"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _apply(column, uses_vocabulary)


class _PlausibleMeasures(ColumnMapMetricProvider):
    condition_metric_name = "column_values.measures_plausible"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _apply(column, are_plausible)


class _BoxesInside(ColumnMapMetricProvider):
    condition_metric_name = "column_values.boxes_inside"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _apply(column, are_inside_image)


class ExpectColumnAffinesToHaveStoredOrientation(ColumnMapExpectation):
    """Expect affines with the orientation of the store."""

    map_metric = "column_values.stored_orientation"


class ExpectColumnDescriptionsToUseVocabulary(ColumnMapExpectation):
    """Expect the fields of the template with words of its controlled vocabularies."""

    map_metric = "column_values.description_in_vocabulary"


class ExpectColumnMeasuresToBePlausible(ColumnMapExpectation):
    """Expect plausible sizes in millimeters and volumes in milliliters."""

    map_metric = "column_values.measures_plausible"


class ExpectColumnBoxesToBeInsideTheImage(ColumnMapExpectation):
    """Expect boxes inside the image."""

    map_metric = "column_values.boxes_inside"
