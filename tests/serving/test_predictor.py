from __future__ import annotations

import base64
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from serving.samples import encode, image_bytes, png_bomb, tiny_model, tiny_spec

from fairtune.data.batches import eval_batches
from fairtune.data.images import load_image
from fairtune.errors import InputError
from fairtune.serving import predictor as texts
from fairtune.serving.predictor import Predictor, probability_columns
from fairtune.serving.spec import SPEC_FILE, WEIGHTS_FILE, ServingSpec, export_model, load_exported


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model(), tiny_spec(), version="tiny/1", device="cpu")


def expected(data: bytes, model: torch.nn.Module, spec: ServingSpec) -> np.ndarray:
    """The same answer by another road: float64 arithmetic on the training pixels."""
    pixels = load_image(data, spec.image_size).astype(np.float64) / 255
    x = torch.from_numpy((pixels - spec.mean) / spec.std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        return model(x).softmax(1)[0].numpy()


def test_answers_equal_the_model_on_the_training_pixels(predictor: Predictor) -> None:
    images = [image_bytes(seed, kind=kind) for seed in range(5) for kind in ("JPEG", "PNG")]
    answers = predictor.predict([encode(data) for data in images])
    want = [expected(data, tiny_model(), predictor.spec) for data in images]
    got = [[row[key] for key in probability_columns(predictor.spec.classes)] for row in answers]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.ptp(np.array(got)[:, 1]) > 0.05, "the images must not all get one answer"


def test_threshold_decides_between_two_classes() -> None:
    row = encode(image_bytes(3))
    (probe,) = Predictor(tiny_model(), tiny_spec(), device="cpu").predict([row])
    score = probe["probability_malignant"]
    for threshold, label in ((score - 1e-4, "malignant"), (score + 1e-4, "benign")):
        spec = tiny_spec(threshold=threshold)
        (answer,) = Predictor(tiny_model(), spec, device="cpu").predict([row])
        assert answer["label"] == label
        assert answer["threshold"] == threshold


def test_more_classes_answer_the_most_probable() -> None:
    spec = tiny_spec(classes=("a", "b", "c"), threshold=None)
    (answer,) = Predictor(tiny_model(3), spec, device="cpu").predict([encode(image_bytes())])
    scores = {name: answer[f"probability_{name}"] for name in spec.classes}
    assert answer["label"] == max(scores, key=scores.__getitem__)
    assert answer["threshold"] is None
    assert sum(scores.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (None, texts.NOT_TEXT),
        (7, texts.NOT_TEXT),
        ("", texts.EMPTY),
        ("data:image/png;base64,", texts.EMPTY),
        ("SECRET!!", texts.NOT_BASE64),
        ("SECRETé", texts.NOT_BASE64),
        ("A", texts.NOT_BASE64),
        (encode(b"SECRET text, no image"), "image is damaged or of an unknown kind"),
        (encode(image_bytes()[:300]), "image "),
        (encode(png_bomb()), texts.TOO_MANY_PIXELS.format(limit=2**25)),
        (encode(png_bomb(7_000)), texts.TOO_MANY_PIXELS.format(limit=2**25)),
        (encode(b"\x93NUMPY\x01\x00SECRET"), texts.NOT_AN_IMAGE),
    ],
)
def test_a_bad_row_says_why_and_leaves_its_neighbours_alone(
    predictor: Predictor, row: object, error: str
) -> None:
    good = encode(image_bytes(1))
    first, bad, last = predictor.predict([good, row, good])
    assert bad["error"].startswith(error)
    assert "SECRET" not in bad["error"]
    assert bad["label"] is None
    assert bad["probability_benign"] is None
    assert first["error"] is None
    assert first == last


def test_dicom_is_answered_where_its_reader_is_installed(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.test_medical import RAMP, dicom

    data = dicom(RAMP)
    (answer,) = predictor.predict([encode(data)])
    want = expected(data, tiny_model(), predictor.spec)
    assert answer["probability_malignant"] == pytest.approx(want[1], abs=1e-5)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (answer,) = predictor.predict([encode(data)])
    assert answer["error"].startswith("image needs pydicom")


def test_a_deflated_dicom_is_refused_before_it_is_inflated(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.test_medical import dicom
    from pydicom import dcmread

    bomb = dcmread(io.BytesIO(dicom(np.zeros((4000, 4000), np.uint8))))
    bomb.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    buffer = io.BytesIO()
    bomb.save_as(buffer, enforce_file_format=True)
    assert len(buffer.getvalue()) < 100_000
    monkeypatch.setattr("zlib.decompress", pytest.fail)
    (answer,) = predictor.predict([encode(buffer.getvalue())])
    assert answer["error"] == texts.DEFLATED


def test_a_dicom_that_promises_too_many_pixels_is_refused_undecoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data.test_medical import RAMP, dicom

    predictor = Predictor(tiny_model(), tiny_spec(max_pixels=RAMP.size - 1), device="cpu")
    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", pytest.fail)
    (answer,) = predictor.predict([encode(dicom(RAMP))])
    assert answer["error"] == texts.TOO_MANY_PIXELS.format(limit=RAMP.size - 1)


def test_limits_on_size_and_rows() -> None:
    data = image_bytes()
    small = Predictor(tiny_model(), tiny_spec(max_image_bytes=len(data) - 1, max_rows=2))
    answers = small.predict([encode(data), encode(image_bytes(size=(8, 8))), "", ""])
    limit = len(data) - 1
    assert answers[0]["error"] == texts.TOO_LONG.format(limit=limit)
    assert [row["error"] for row in answers[2:]] == [texts.TOO_MANY.format(limit=2)] * 2


def test_line_breaks_and_data_urls_are_fine(predictor: Predictor) -> None:
    data = image_bytes()
    wrapped = base64.encodebytes(data).decode()
    plain, lines, url = predictor.predict(
        [encode(data), wrapped, "data:image/jpeg;base64," + wrapped]
    )
    for other in (lines, url):  # they may have gone through the model in batches of other sizes
        assert other == pytest.approx(plain, abs=1e-6)


def test_callers_at_once_get_their_own_answers(predictor: Predictor) -> None:
    rows = [encode(image_bytes(seed)) for seed in range(40)]
    alone = [predictor.predict([row])[0]["probability_malignant"] for row in rows]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            together = [
                found[0]["probability_malignant"]
                for found in pool.map(predictor.predict, [[row] for row in rows])
            ]
            np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_failing_model_is_an_error_of_the_row_and_not_the_end() -> None:
    class Moody(torch.nn.Module):
        broken = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.broken:
                raise RuntimeError("SECRET")
            return torch.full((len(x), 2), torch.nan if self.broken is None else 0.0)

    model = Moody()
    predictor = Predictor(model, tiny_spec(), device="cpu")
    row = encode(image_bytes())
    assert predictor.predict([row])[0]["error"] == texts.FAILED
    model.broken = None  # answers that are no numbers
    assert predictor.predict([row])[0]["error"] == texts.FAILED
    model.broken = False
    assert predictor.predict([row])[0]["error"] is None


def test_export_and_load_keep_model_and_spec(tmp_path) -> None:
    model, spec = tiny_model(), tiny_spec()
    again, read = load_exported(export_model(model, spec, tmp_path / "out"))
    assert read == spec
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_damaged_export_says_what_is_wrong(tmp_path) -> None:
    folder = export_model(tiny_model(), tiny_spec(), tmp_path)
    spec_text = (folder / SPEC_FILE).read_text()
    (folder / SPEC_FILE).write_text(
        tiny_spec(options={**tiny_spec().options, "depth": 3}).to_json()
    )
    with pytest.raises(InputError, match="do not fit"):
        load_exported(folder)
    (folder / SPEC_FILE).write_text(spec_text.replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="format 2"):
        load_exported(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=WEIGHTS_FILE):
        load_exported(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"threshold": 1.5},
        {"max_rows": 0},
        {"window": (2, 2)},
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes: dict) -> None:
    with pytest.raises(InputError):
        tiny_spec(**changes)


def test_images_are_read_through_the_window_of_training(tmp_path) -> None:
    values = np.linspace(0, 350, 32 * 32).reshape(32, 32).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    folder = export_model(tiny_model(), tiny_spec(window=(0, 350)), tmp_path)
    predictor = Predictor.load(folder, device="cpu")
    wanted = load_image(buffer.getvalue(), 32, window=(0, 350))
    np.testing.assert_array_equal(predictor.prepare(encode(buffer.getvalue())), wanted)
    assert wanted.max() == 255


def test_a_jpeg_of_endless_scans_is_refused_undecoded(predictor: Predictor) -> None:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(image_bytes(size=(400, 300))))
    image.save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(texts.START_OF_SCAN)
    assert predictor.predict([encode(data)])[0]["error"] is None
    endless = data[:last] + data[last:-2] * 200 + data[-2:]
    assert load_image(endless, 32).shape == (32, 32, 3), "it is a JPEG, not damage"
    refused = texts.TOO_MANY_SCANS.format(limit=texts.MAX_SCANS)
    assert predictor.predict([encode(endless)])[0]["error"] == refused


@pytest.mark.parametrize("store_size", [None, 32, 48, 20])
def test_the_model_sees_the_very_pixels_of_training(store_size: int | None) -> None:
    """From a file's bytes to the model's input: the store and its batches here, the server there."""
    files = [image_bytes(seed, size=(90, 61)) for seed in range(3)]
    spec = tiny_spec(store_size=store_size)
    store = np.stack([load_image(data, store_size or spec.image_size) for data in files])
    (wanted,) = eval_batches(
        store,
        np.arange(3),
        batch_size=3,
        size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        device="cpu",
    )
    seen = []
    model = tiny_model()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    predictor = Predictor(model, spec, device="cpu")
    predictor.scores(np.stack([predictor.prepare(encode(data)) for data in files]))
    assert torch.equal(seen[0], wanted)
