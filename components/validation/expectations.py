"""Expectations that Great Expectations does not have: about affines, descriptions, measurements and boxes, each a predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial
from pydantic import ValidationError

from components.curation.text.template import HierarchicalDescription
from model_core.boxes import GRID


def right_way_up(affine: Iterable[float]) -> bool:
    """Whether an index -> RAS+ affine (16 numbers) leads as volumes are stored: no mirror image, no shear, no vanished axis.

    Slices lead up, backward or to the left; rows and columns then make a left-handed frame with them, as radiologists look at it.
    """
    matrix = np.asarray(list(affine), dtype=np.float64).reshape(4, 4)[:3, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(matrix).all() or lengths.min() <= 0:
        return False
    cosines = matrix / lengths
    return bool(np.linalg.det(cosines) < -0.98)


def in_vocabulary(fields: Mapping[str, str]) -> bool:
    """Whether a description's fields are the template's, in its words."""
    try:
        HierarchicalDescription.of(dict(fields))
    except ValidationError:
        return False
    return True


def plausible(measures: Iterable[Mapping[str, Any]]) -> bool:
    """Whether sizes (mm), volumes (ml) and relative signals fit a body and each other.

    A structure is no larger than 600 mm, no smaller than its own volume needs, and no part of it larger than the cube of its size
    times the number of parts.
    """
    for one in measures:
        size_mm, volume_ml, parts = one["size_mm"], one["volume_ml"], one["count"] or 1
        if not 0 < size_mm <= 600:
            return False
        if volume_ml is not None and not 0 < volume_ml * 1000 <= size_mm**3 * parts * 1.01:
            return False
        if one["signal"] is not None and not 0 <= one["signal"] <= 100:
            return False
    return True


def inside(boxes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether every box lies in the image (0-999), corner before corner."""
    return all(0 <= b["row0"] < b["row1"] < GRID and 0 <= b["col0"] < b["col1"] < GRID for b in boxes)


def _holds(column: pd.Series, predicate: Callable[[Any], bool]) -> pd.Series:
    return column.map(predicate).astype(bool)


class _RightWayUp(ColumnMapMetricProvider):
    condition_metric_name = "column_values.right_way_up"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _holds(column, right_way_up)


class _InVocabulary(ColumnMapMetricProvider):
    condition_metric_name = "column_values.description_in_vocabulary"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _holds(column, in_vocabulary)


class _Plausible(ColumnMapMetricProvider):
    condition_metric_name = "column_values.measures_plausible"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _holds(column, plausible)


class _Inside(ColumnMapMetricProvider):
    condition_metric_name = "column_values.boxes_inside"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return _holds(column, inside)


class ExpectColumnAffinesToBeRightWayUp(ColumnMapExpectation):
    """Expect affines that lead as volumes are stored."""

    map_metric = "column_values.right_way_up"


class ExpectColumnDescriptionsToBeInVocabulary(ColumnMapExpectation):
    """Expect the fields of the template, in its controlled vocabularies."""

    map_metric = "column_values.description_in_vocabulary"


class ExpectColumnMeasuresToBePlausible(ColumnMapExpectation):
    """Expect sizes in millimetres and volumes in millilitres that fit each other."""

    map_metric = "column_values.measures_plausible"


class ExpectColumnBoxesToBeInsideTheImage(ColumnMapExpectation):
    """Expect boxes inside of the image."""

    map_metric = "column_values.boxes_inside"
