"""The server's OpenAPI page, which clients and test generators read."""

from __future__ import annotations

from typing import Any

import fairtune
from fairtune.serving.predictor import probability_columns
from fairtune.serving.spec import IMAGE_COLUMN, ServingSpec

Schema = dict[str, Any]


def openapi(spec: ServingSpec, body_limit: int) -> Schema:
    """Describe `POST /invocations` and the pages beside it."""
    pages = {path: {"get": _operation(_plain())} for path in ("/ping", "/health", "/version")}
    return {
        "openapi": "3.1.0",
        "info": {"title": spec.name or "fairtune model", "version": fairtune.__version__},
        "paths": {**pages, "/invocations": {"post": _invocations(spec, body_limit)}},
    }


def _invocations(spec: ServingSpec, body_limit: int) -> Schema:
    image = {"type": "string", "contentEncoding": "base64", "description": "bytes of a JPEG or PNG"}
    record = {"type": "object", "properties": {IMAGE_COLUMN: image}, "required": [IMAGE_COLUMN]}
    records = {"type": "array", "items": record, "maxItems": spec.max_rows}
    split = {
        "type": "object",
        "properties": {
            "columns": {
                "type": "array",
                "items": {"enum": [IMAGE_COLUMN]},
                "minItems": 1,
                "maxItems": 1,
            },
            "data": {
                "type": "array",
                "maxItems": spec.max_rows,
                "items": {"type": "array", "items": image, "minItems": 1, "maxItems": 1},
            },
        },
        "required": ["columns", "data"],
    }
    shapes = {"dataframe_split": split, "dataframe_records": records, "inputs": records}
    shapes_of_body = [
        {
            "type": "object",
            "properties": {key: shape},
            "required": [key],
        }
        for key, shape in shapes.items()
    ]
    operation = _operation(_predictions(spec))
    operation["description"] = f"At most {body_limit} bytes and {spec.max_rows} images a request."
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"anyOf": shapes_of_body}}},
    }
    for status in ("400", "408", "413", "415", "503", "504"):
        operation["responses"][status] = {"description": "an object with `message`"}
    return operation


def _predictions(spec: ServingSpec) -> Schema:
    number, text = {"type": ["number", "null"]}, {"type": ["string", "null"]}
    row = {
        "type": "object",
        "properties": {
            "label": text,
            **dict.fromkeys(probability_columns(spec.classes), number),
            "threshold": number,
            "model_version": text,
            "error": text,
        },
    }
    rows = {"type": "array", "items": row}
    schema = {"type": "object", "properties": {"predictions": rows}, "required": ["predictions"]}
    return {"application/json": {"schema": schema}}


def _plain() -> Schema:
    return {"application/json": {}}


def _operation(content: Schema) -> Schema:
    return {"responses": {"200": {"description": "done", "content": content}}}
