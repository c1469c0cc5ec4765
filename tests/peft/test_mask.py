"""Masks as values: JSON, fingerprint, words."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from fairtune.errors import InputError
from fairtune.peft import Mask, get_space


@pytest.fixture
def mask(skeleton) -> Mask:
    model = skeleton("test_vit")
    return get_space("auto_peft1").mask(model, [1, 0, 1] * len(model.blocks))


def test_round_trip(mask):
    again = Mask.from_json(mask.to_json())
    assert again == mask
    assert hash(again) == hash(mask)
    assert again.fingerprint == mask.fingerprint


def test_numpy_bits_become_plain_integers(skeleton):
    model = skeleton("test_vit")
    space = get_space("auto_peft1")
    bits = np.ones(space.n_bits(model), dtype=np.int64)
    mask = space.mask(model, bits)
    assert all(type(bit) is int for bit in mask.bits)
    assert mask == space.mask(model, bits.tolist()) == space.mask(model, bits.astype(bool))


def test_fingerprint_is_stable_over_processes_and_versions():
    mask = Mask("auto_peft1", "vit", ("blocks.00.attn",), (1,), ("a", "b"), trained=1, total=2)
    assert mask.fingerprint == "3ee4e83eebd9"


def test_fingerprint_tells_space_architecture_and_trained_set(mask):
    for change in ({"space": "x"}, {"architecture": "x"}, {"parameters": mask.parameters[1:]}):
        assert replace(mask, **change).fingerprint != mask.fingerprint


def test_bits_that_train_the_same_share_a_fingerprint(mask):
    assert replace(mask, bits=(0, *mask.bits[1:])).fingerprint == mask.fingerprint
    # A rank beyond 1 changes what trains though the names stay.
    assert replace(mask, bits=(4, *mask.bits[1:])).fingerprint != mask.fingerprint


def test_share_and_words(mask):
    assert mask.share == mask.trained / mask.total
    assert 0 < mask.share < 1
    assert mask.text == "101" * (len(mask.bits) // 3)
    assert mask.short(3) == "101…"
    assert mask.short(100) == mask.text
    assert list(mask.named_bits().items())[1] == ("blocks.00.attn", 0)
    ranks = Mask("lora", "vit", ("a", "b", "c"), (4, 0, 16), (), trained=0, total=0)
    assert (ranks.text, ranks.share) == ("4-0-16", 0.0)


def test_is_frozen(mask):
    with pytest.raises(FrozenInstanceError):
        mask.bits = ()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff\xfe"])
def test_what_is_no_mask_is_refused(text):
    with pytest.raises(InputError, match=r"^mask"):
        Mask.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": [1]}, "names but 1 bits"),
        ({"bits": ["1"]}, "bits must be a list of int"),
        ({"bits": [True] * 18}, "bits must be a list of int"),
        ({"names": "abc"}, "names must be a list of str"),
        ({"space": 3}, "space must be str"),
        ({"total": 1.5}, "total must be int"),
        ({"trained": -1}, "trains -1"),
        ({"parameters": ["b", "a"]}, "sorted"),
        ({"parameters": ["a"]}, "edited"),
        ({"fingerprint": None}, "edited"),
        ({"extra": 1}, "unknown keys \\['extra'\\]"),
    ],
)
def test_an_edited_mask_is_refused(mask, change, message):
    content = json.loads(mask.to_json()) | change
    with pytest.raises(InputError, match=message):
        Mask.from_json(json.dumps(content))


def test_a_missing_key_is_named(mask):
    content = json.loads(mask.to_json())
    del content["names"]
    with pytest.raises(InputError, match=r"lacks the keys \['names'\]"):
        Mask.from_json(json.dumps(content))
