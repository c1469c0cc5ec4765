"""Splits: by patient always, the published draw exactly, each image tested once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from fairtune.data import Manifest
from fairtune.data.splits import (
    k_folds,
    patients_in_several,
    split_by_key,
    split_stratified,
    strata_of,
)
from fairtune.errors import InputError


def cohort(patients: int = 200, seed: int = 0) -> Manifest:
    rng = np.random.default_rng(seed)
    repeats = rng.integers(1, 5, patients)
    patient = np.repeat([f"p{i:04d}" for i in range(patients)], repeats)
    rare = np.repeat(rng.random(patients) < 0.2, repeats)
    n = len(patient)
    table = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(n)],
            "label": np.repeat(rng.random(patients) < 0.3, repeats).astype(int),
            "patient": patient,
            "split": "train",
            "kind": pd.Categorical(np.where(rare, "rare", "common")),
        }
    )
    return Manifest("cohort", table, ("kind",), ("no", "yes"), Path())


def test_split_by_key_is_the_published_draw() -> None:
    keys = np.array(list("ddaaccbbeeffgghhiijjkk"))
    unique = np.unique(keys)
    train, rest = train_test_split(unique, test_size=0.3, random_state=5)
    val, test = train_test_split(rest, test_size=0.66, random_state=15)
    split = split_by_key(keys, rest=0.3, test_of_rest=0.66, seeds=(5, 15))
    for name, members in {"train": train, "val": val, "test": test}.items():
        assert set(keys[split == name]) == set(members)


def test_split_by_key_does_not_follow_the_order_of_rows() -> None:
    keys = pd.Series([f"k{i // 3}" for i in range(300)])
    shuffled = keys.sample(frac=1, random_state=1)
    first = dict(zip(keys, split_by_key(keys), strict=True))
    assert first == dict(zip(shuffled, split_by_key(shuffled), strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 80), st.integers(0, 10_000))
def test_no_patient_is_ever_in_two_splits(patients: int, seed: int) -> None:
    made = cohort(patients, seed)
    strata = strata_of(made.table["label"], made.groups())
    for split in (
        split_by_key(made.table["patient"], seeds=(seed, seed)),
        split_stratified(made.table["patient"], strata, seed=seed),
    ):
        again = made.with_split(split)
        assert patients_in_several(again.table) == []
        assert set(split) == {"train", "val", "test"}


@pytest.mark.parametrize("patients", [2000, 6000])
def test_stratified_split_keeps_each_groups_share(patients: int) -> None:
    made = cohort(patients)
    strata = strata_of(made.table["label"], made.groups())
    split = split_stratified(made.table["patient"], strata, ratios=(0.7, 0.1, 0.2))
    assert patients_in_several(made.with_split(split).table) == []
    whole = pd.Series(strata).value_counts(normalize=True)
    for name, ratio in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        part = strata[split == name]
        assert abs(len(part) / len(strata) - ratio) < 0.01
        share = pd.Series(part).value_counts(normalize=True)
        assert (share - whole).abs().max() < 0.015


def test_cross_testing_tests_every_image_once() -> None:
    made = cohort()
    tested = np.zeros(len(made), int)
    validated = np.zeros(len(made), int)
    for fold in k_folds(made, 5, seed=3):
        assert patients_in_several(fold.table) == []
        tested[fold.rows("test")] += 1
        validated[fold.rows("val")] += 1
        assert fold.groups("test")["kind"].nunique() == 2
    assert (tested == 1).all()
    assert (validated == 1).all()


def test_folds_are_those_of_their_seed() -> None:
    made = cohort()
    splits = [[f.table["split"].tolist() for f in k_folds(made, 3, seed=s)] for s in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_an_intersection_alone_makes_folds() -> None:
    made = cohort()
    half = pd.Categorical(np.where(made.table["patient"] < "p0100", "first", "second"))
    table = made.table.assign(half=half)
    both = replace(made, table=table, attributes=("kind", "half")).select(["kind*half"])
    assert both.select(both.attributes).attributes == ("kind*half",)
    assert sum((f.table["split"] == "test").sum() for f in k_folds(both, 3)) == len(table)


@pytest.mark.parametrize(
    ("shares", "needed"), [({}, 6), ({"rest": 0.3, "test_of_rest": 0.66}, 7), ({"rest": 0.5}, 3)]
)
def test_split_by_key_says_how_many_patients_it_needs(
    shares: dict[str, float], needed: int
) -> None:
    keys = [f"p{number}" for number in range(needed)]
    assert set(split_by_key(keys, **shares)) == {"train", "val", "test"}
    for fewer in range(1, needed):
        with pytest.raises(InputError, match=rf"^{fewer} patient.*; {needed} are needed$"):
            split_by_key(keys[:fewer], **shares)


@pytest.mark.parametrize(
    "ratios", [(0.05, 0.475, 0.475), (0.01, 0.01, 0.98), (0.01, 0.98, 0.01), (0.98, 0.01, 0.01)]
)
@pytest.mark.parametrize("patients", [3, 4, 7, 300])
def test_every_split_of_a_stratified_one_has_patients(
    ratios: tuple[float, float, float], patients: int
) -> None:
    keys = [f"p{number}" for number in range(patients)]
    split = pd.Series(split_stratified(keys, ["x"] * patients, ratios=ratios)).value_counts()
    assert set(split.index) == {"train", "val", "test"}
    if patients == 300:
        wanted = pd.Series(dict(zip(("train", "val", "test"), ratios, strict=True)))
        assert (split / patients - wanted).abs().max() < 0.1, "within two of twenty folds"


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(InputError, match="2 patient"):
        split_by_key(["a", "a", "b"])
    with pytest.raises(InputError, match="between 0 and 1"):
        split_by_key(list("abcdefgh"), rest=1.0)
    with pytest.raises(InputError, match="2 patient"):
        split_stratified(["a", "a", "b"], ["x", "x", "x"])
    with pytest.raises(InputError, match="k >= 3"):
        next(k_folds(cohort(), 2))
    with pytest.raises(InputError, match="three positive"):
        split_stratified(["a", "b", "c"], ["x"] * 3, ratios=(1.0, 0.0, 0.0))
