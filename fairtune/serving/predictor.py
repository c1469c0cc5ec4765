"""From base64 images to answers, row by row: the work of the served model, without MLflow.

Whatever is wrong with a row is said in that row's `error`, in words that never repeat the input;
the other rows of the request are answered. Nothing here raises because of what a client sent.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fairtune.data.images import FORMATS, ImageError, load_image
from fairtune.data.resampling import normalisation, resized_pixels
from fairtune.serving.batching import Images, MicroBatcher, Scores
from fairtune.serving.spec import ServingSpec, load_exported

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

NOT_TEXT = "image is not a string: send the file's bytes as base64"
NOT_BASE64 = "image is not valid base64"
EMPTY = "image is empty"
TOO_LONG = "image is larger than {limit} bytes"
NOT_AN_IMAGE = "image cannot be decoded: send a whole JPEG or PNG file"
TOO_MANY = "more than {limit} rows in one request: send smaller batches"
FAILED = "the model failed on this image"
TOO_MANY_PIXELS = "image has more than {limit} pixels"
TOO_MANY_SCANS = "image is a JPEG of more than {limit} scans"
MAX_SCANS = 100
"""A progressive JPEG has about ten. Each is a pass over the whole image, and ten bytes make one."""
START_OF_SCAN = b"\xff\xda"
DEFLATED = "image is a deflated DICOM file: send it without that compression"
DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"  # PS3.5 A.5
# Reasons of `ImageError` that hold no text from the file; other reasons may quote it.
HARMLESS = ("has ", "is damaged", "is truncated", "does not fit", "needs ")

Answer = dict[str, Any]
Pending = Future[Scores] | str
"""A row under way: a future of its scores (1, C), or its error."""


class RowError(Exception):
    """A row cannot be answered; the text is fit for the client."""


class Predictor:
    """A loaded model with its preprocessing, thread-safe.

    Parameters
    ----------
    model : torch.nn.Module
        Images (N, 3, S, S) to logits (N, C).
    spec : ServingSpec
        Sizes, normalisation, classes, threshold and limits.
    version : str
        What the answers say about which model gave them.
    device : str or None
        Torch device; None takes a GPU when there is one.
    """

    def __init__(
        self, model: nn.Module, spec: ServingSpec, *, version: str = "", device: str | None = None
    ) -> None:
        import torch

        self.spec = spec
        self.version = version
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = model.eval().to(self.device)
        shape = (1, -1, 1, 1)
        scale, offset = normalisation(spec.mean, spec.std)
        self._scale, self._offset = (t.view(shape).to(self.device) for t in (scale, offset))
        self._batcher = MicroBatcher(self.scores, spec.max_batch)

    @classmethod
    def load(cls, folder: Path, *, version: str = "", device: str | None = None) -> Predictor:
        """Load what `export_model` wrote; raises `InputError` when it is not whole."""
        model, spec = load_exported(folder)
        return cls(model, spec, version=version, device=device)

    def stats(self) -> dict[str, int]:
        """Count the calls of the model so far, and the images they held."""
        return {"calls": self._batcher.calls, "images": self._batcher.images}

    def scores(self, images: Images) -> Scores:
        """Class probabilities (N, C) float32 of prepared uint8 images (N, S, S, 3)."""
        import torch

        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
            logits = self._model(torch.addcmul(self._offset, batch, self._scale))  # (N, C)
            result: Scores = torch.softmax(logits.float(), dim=1).cpu().numpy()
        return result

    def warm_up(self) -> None:
        """Call the model once, so that the first client does not wait for lazy initialisation."""
        size = self.spec.image_size
        self._batcher(np.zeros((1, size, size, 3), np.uint8))

    def prepare(self, value: object) -> Images:
        """Turn one base64 text into pixels (S, S, 3); raises `RowError` fit for the client."""
        data = decode_base64(value, self.spec.max_image_bytes)
        check_header(data, self.spec.max_pixels)
        try:
            size = self.spec.store_size or self.spec.image_size
            return self._resized(load_image(data, size, window=self.spec.window))
        except ImageError as error:
            told = f"image {error.reason}" if error.reason.startswith(HARMLESS) else NOT_AN_IMAGE
            raise RowError(told) from None
        except Exception:
            logger.debug("an image could not be decoded", exc_info=True)
            raise RowError(NOT_AN_IMAGE) from None

    def _resized(self, pixels: Images) -> Images:
        """Resize stored pixels (T, T, 3) to the model's (S, S, 3) by the very step of training."""
        import torch

        size = self.spec.image_size
        if pixels.shape[0] == size:
            return pixels
        resized = resized_pixels(torch.from_numpy(np.array(pixels))[None], size)
        result: Images = resized[0].permute(1, 2, 0).numpy()
        return result

    def submit(self, rows: Sequence[object]) -> Iterator[Pending]:
        """Decode rows, one at a time, and queue them."""
        for position, value in enumerate(rows):
            if position >= self.spec.max_rows:
                yield TOO_MANY.format(limit=self.spec.max_rows)
                continue
            try:
                yield self._batcher.submit(self.prepare(value)[None])
            except RowError as error:
                yield str(error)

    def predict(self, rows: Sequence[object]) -> list[Answer]:
        """Answer every row: label, probabilities, threshold, model version, error."""
        answers = []
        for item in list(self.submit(rows)):  # all are queued before the first is waited for
            if isinstance(item, str):
                answers.append(self.refusal(item))
                continue
            try:
                answers.append(self.answer(item.result()[0]))
            except Exception:
                logger.exception("the model failed on a batch")
                answers.append(self.refusal(FAILED))
        return answers

    def answer(self, scores: Scores) -> Answer:
        """Put one row's probabilities (C,) into words."""
        if not np.isfinite(scores).all():
            return self.refusal(FAILED)
        best = int(scores.argmax())
        threshold = self.spec.threshold if len(self.spec.classes) == 2 else None
        if threshold is not None:
            best = int(scores[1] >= threshold)
        return self._row(
            self.spec.classes[best], [float(score) for score in scores], threshold, None
        )

    def refusal(self, error: str) -> Answer:
        """Build the answer to a row that cannot be answered: all keys, null values."""
        return self._row(None, [None] * len(self.spec.classes), None, error)

    def _row(
        self,
        label: str | None,
        scores: Sequence[float | None],
        threshold: float | None,
        error: str | None,
    ) -> Answer:
        return {
            "label": label,
            **dict(zip(probability_columns(self.spec.classes), scores, strict=True)),
            "threshold": threshold,
            "model_version": self.version,
            "error": error,
        }


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the answer's probability columns, in the order of the classes."""
    return [f"probability_{name}" for name in classes]


def check_header(data: bytes, limit: int) -> None:
    """Refuse arrays, and images that promise more than `limit` pixels or `MAX_SCANS` scans, undecoded.

    Raises
    ------
    RowError
        Too many pixels or scans; a NumPy array, which training reads from disk but no client sends; or a
        DICOM file that is deflated as a whole, header and all, so that nothing says how large it
        will be, and pydicom inflates it without a limit.
    """
    if data.startswith(b"\x93NUMPY"):
        raise RowError(NOT_AN_IMAGE)
    if data[128:132] == b"DICM" and DEFLATED_SYNTAX in data:
        raise RowError(DEFLATED)
    if data.startswith(b"\xff\xd8") and data.count(START_OF_SCAN) > MAX_SCANS:
        raise RowError(TOO_MANY_SCANS.format(limit=MAX_SCANS))
    try:
        width, height = _promised_size(data)
    except Image.DecompressionBombError:
        raise RowError(TOO_MANY_PIXELS.format(limit=limit)) from None
    except Exception:  # damaged, or pydicom is not installed: decoding says which
        return
    if width * height > limit:
        raise RowError(TOO_MANY_PIXELS.format(limit=limit))


def _promised_size(data: bytes) -> tuple[int, int]:
    """Read width and height out of an image's header; raises nearly anything on damaged data."""
    if data[128:132] != b"DICM":
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    import pydicom

    header = pydicom.dcmread(
        io.BytesIO(data), stop_before_pixels=True, specific_tags=["Rows", "Columns"]
    )
    return int(header.Columns), int(header.Rows)


def decode_base64(value: object, limit: int) -> bytes:
    """Decode base64 text, with or without line breaks or a `data:` prefix.

    Raises
    ------
    RowError
        Not text, not base64, empty, or over `limit` bytes; the size is checked before decoding.
    """
    if not isinstance(value, str):
        raise RowError(NOT_TEXT)
    text = value.partition(",")[2] if value.startswith("data:") else value
    if len(text) > limit * 4 // 3 + limit // 24 + 8:  # line breaks: two in every 76 characters
        raise RowError(TOO_LONG.format(limit=limit))
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(NOT_BASE64) from None
    if not data:
        raise RowError(EMPTY)
    if len(data) > limit:
        raise RowError(TOO_LONG.format(limit=limit))
    return data
