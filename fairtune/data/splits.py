"""Splits by patient: no patient's images are ever in two splits."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from fairtune.data.manifest import SPLITS, Manifest
from fairtune.errors import InputError

_MANY_PATIENTS = 5_000
_MOST_FOLDS = 20  # ratios are met to one part in this many


def split_by_key(
    keys: Sequence[str] | np.ndarray | pd.Series,
    *,
    rest: float = 0.2,
    test_of_rest: float = 0.5,
    seeds: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Split as the MEDFAIR benchmark does, over the sorted unique keys.

    First `train_test_split(keys, test_size=rest, random_state=seeds[0])` takes the rest from the
    training keys, then `test_size=test_of_rest, random_state=seeds[1]` the test keys from the rest.

    Parameters
    ----------
    keys
        The patient (or lesion) of each image, shape (N,).

    Returns
    -------
    np.ndarray
        "train", "val" or "test" for each image, shape (N,), dtype object.

    Raises
    ------
    InputError
        If a share is not between 0 and 1, or there are too few patients for each split to have
        one; says how many are needed.

    References
    ----------
    Zong, Yang, Hospedales, "MEDFAIR: Benchmarking Fairness for Medical Imaging", ICLR 2023.
    """
    if not (0 < rest < 1 and 0 < test_of_rest < 1):
        raise InputError(f"shares must lie between 0 and 1, got {rest} and {test_of_rest}")
    values = np.asarray(keys, dtype=object)
    unique = np.unique(values)

    def sizes(patients: int) -> tuple[int, int, int]:  # as scikit-learn rounds
        others = math.ceil(rest * patients)
        test = math.ceil(test_of_rest * others)
        return patients - others, others - test, test

    if min(sizes(len(unique))) < 1:
        needed = next(patients for patients in itertools.count(3) if min(sizes(patients)) > 0)
        raise InputError(
            f"{len(unique)} patient(s) cannot be split in three, of which val and test have "
            f"{rest:.0%} together; {needed} are needed"
        )
    train, others = train_test_split(unique, test_size=rest, random_state=seeds[0])
    val, test = train_test_split(others, test_size=test_of_rest, random_state=seeds[1])
    return _assign(values, {"train": train, "val": val, "test": test})


def split_stratified(
    keys: Sequence[str] | np.ndarray | pd.Series,
    strata: Sequence[str] | np.ndarray | pd.Series,
    *,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> np.ndarray:
    """Split by patient so that each stratum (a label and its groups) has its share in every split.

    The patients fall into at most twenty stratified folds, as few as the ratios need, which go
    to train, val and test in proportion.

    Returns
    -------
    np.ndarray
        "train", "val" or "test" for each image, shape (N,), dtype object.
    """
    if len(ratios) != 3 or any(part <= 0 for part in ratios):
        raise InputError(f"split ratios must be three positive numbers, got {ratios}")
    shares = [part / sum(ratios) for part in ratios]
    wanted = next((n for n in range(3, _MOST_FOLDS) if _is_whole(n, shares)), _MOST_FOLDS)
    fold = _fold_of(np.asarray(keys, dtype=object), np.asarray(strata, dtype=object), wanted, seed)
    folds = int(fold.max()) + 1
    val, test = (max(1, round(folds * share)) for share in shares[1:])
    while val + test >= folds:  # rounded up, they would leave nothing to train on
        val, test = (val - 1, test) if val > test else (val, test - 1)
    split = np.full(len(fold), "train", dtype=object)
    split[fold < val + test] = "val"
    split[fold < test] = "test"
    return split


def k_folds(
    manifest: Manifest, k: int = 5, *, seed: int = 0, attributes: Sequence[str] | None = None
) -> Iterator[Manifest]:
    """Yield the manifest `k` times, split anew, so that every image is tested exactly once.

    In fold i the i-th part is tested, the next one validates and the others train. Parts are by
    patient and stratified by label and groups of `attributes` (by default all).
    """
    if k < 3:
        raise InputError(f"cross-testing needs k >= 3 (train, val, test), got {k}")
    names = list(manifest.attributes if attributes is None else attributes)
    strata = strata_of(manifest.table["label"], manifest.select(names).groups())
    part = _fold_of(manifest.table["patient"].to_numpy(dtype=object), strata, k, seed)
    if int(part.max()) + 1 < k:
        raise InputError(f"{manifest.table['patient'].nunique()} patients cannot make {k} folds")
    for fold in range(k):
        split = np.full(len(part), "train", dtype=object)
        split[part == (fold + 1) % k] = "val"
        split[part == fold] = "test"
        yield manifest.with_split(split)


def patients_in_several(table: pd.DataFrame) -> list[str]:
    """Name the patients who are in more than one split, ascending."""
    splits = table.groupby("patient", observed=True)["split"].nunique()
    return sorted(splits.index[splits > 1])


def strata_of(label: pd.Series, groups: pd.DataFrame) -> np.ndarray:
    """Name the cell of label and groups of each row, shape (N,)."""
    cells = label.astype(str).to_numpy(dtype=object)
    for name in groups.columns:
        cells = cells + "|" + groups[name].astype(str).to_numpy(dtype=object)
    return cells


def _fold_of(keys: np.ndarray, strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, 0..folds-1, by patient, stratified."""
    patients = len(np.unique(keys))
    if patients < 3:
        raise InputError(f"{patients} patient(s) cannot be split in three; three are needed")
    _, cell = np.unique(strata, return_inverse=True)
    if patients > _MANY_PATIENTS:
        return _fold_by_rarest_cell(keys, cell, folds, seed)
    # scikit-learn wants as many rows in the largest stratum as there are folds.
    folds = min(folds, patients, int(np.bincount(cell).max()))
    if folds < 3:
        raise InputError("no group has three images of one label; give the splits in the table")
    maker = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    rows = np.zeros(len(keys), dtype=np.int8)
    fold = np.zeros(len(keys), dtype=np.int64)
    with warnings.catch_warnings():  # strata smaller than the number of folds are no surprise here
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, members) in enumerate(maker.split(rows, cell, keys)):
            fold[members] = number
    return fold


def _fold_by_rarest_cell(keys: np.ndarray, cell: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row for many patients, each counted for the rarest of its cells.

    `StratifiedGroupKFold` weighs each patient against each fold, which takes 20 s for 65,000.
    With so many patients the shares come out the same to a fraction of a percent.
    """
    frequency = np.bincount(cell)
    patients, patient = np.unique(keys, return_inverse=True)
    order = np.argsort(-frequency[cell], kind="stable")
    rarest = np.empty(len(patients), dtype=np.int64)
    rarest[patient[order]] = cell[order]  # the last assignment, the rarest cell, stays
    maker = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    fold = np.empty(len(patients), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, members) in enumerate(maker.split(rarest, rarest)):
            fold[members] = number
    return fold[patient]


def _is_whole(folds: int, shares: Sequence[float]) -> bool:
    return all(abs(folds * share - round(folds * share)) < 1e-6 for share in shares)


def _assign(values: np.ndarray, members: Mapping[str, np.ndarray]) -> np.ndarray:
    home = {key: split for split in SPLITS for key in members[split]}
    return np.array([home[value] for value in values], dtype=object)
