"""Reading a request: the shapes of JSON that MLflow's scoring protocol knows, to a list of rows.

Stricter than MLflow where that is safer, and no message holds a piece of the request.
"""

from __future__ import annotations

import json
from typing import Any

from fairtune.serving.spec import IMAGE_COLUMN

NOT_JSON = "the body is not JSON in UTF-8"
NOT_ONE = (
    "the body must be an object with exactly one of dataframe_split, dataframe_records, inputs, "
    "instances"
)
NO_COLUMN = f"dataframe_split needs columns with {IMAGE_COLUMN!r} once, and data of as many columns"
NOT_ROWS = f"give rows as a list of objects with the key {IMAGE_COLUMN!r}"
TOO_MANY = "more than {limit} rows in one request: send smaller batches"

_FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")


class RequestError(Exception):
    """A request cannot be answered; `status` is HTTP's, the text is fit for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_rows(body: bytes, limit: int) -> list[object]:
    """Parse a body into what should be base64 texts, one a row.

    Raises
    ------
    RequestError
        Not JSON, not of a known shape, or over `limit` rows. What a row holds is not looked at.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # also: not UTF-8, numbers of too many digits
        raise RequestError(400, NOT_JSON) from None
    rows = _rows(document)
    if len(rows) > limit:
        raise RequestError(400, TOO_MANY.format(limit=limit))
    return rows


def _rows(document: object) -> list[object]:
    given = [key for key in _FORMATS if isinstance(document, dict) and key in document]
    if not isinstance(document, dict) or len(given) != 1:
        raise RequestError(400, NOT_ONE)
    (key,) = given
    value = document[key]
    if key == "dataframe_split":
        return _from_split(value)
    if key in ("inputs", "instances") and isinstance(value, dict):
        value = value.get(IMAGE_COLUMN)
    if not isinstance(value, list):
        raise RequestError(400, NOT_ROWS)
    return [row.get(IMAGE_COLUMN) if isinstance(row, dict) else row for row in value]


def _from_split(value: Any) -> list[object]:
    columns = value.get("columns") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if (
        not isinstance(columns, list)
        or columns.count(IMAGE_COLUMN) != 1
        or not isinstance(data, list)
        or not all(isinstance(row, list) and len(row) == len(columns) for row in data)
    ):
        raise RequestError(400, NO_COLUMN)
    position = columns.index(IMAGE_COLUMN)
    return [row[position] for row in data]
