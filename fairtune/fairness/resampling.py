"""Metrics of many cluster resamples at once.

A resample is a column of multiplicities: how often each cluster (patient) was drawn. All metrics
are functions of weighted counts, so a block of resamples is a few gathers, running sums and one
matrix product, and no row is ever copied out. Weights are whole numbers in doubles, so the results
are those of the resampled rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairtune.errors import InputError
from fairtune.fairness.disparities import DISPARITIES, PAIRWISE
from fairtune.fairness.grouping import groupings
from fairtune.fairness.metrics import Floats, Labels, log_losses, predict
from fairtune.fairness.naming import slug
from fairtune.fairness.validation import check_scores, check_threshold
from fairtune.progress import progress_bar

BLOCK_BYTES = 2**25  # one (N, b) array of doubles; a handful are alive at a time
MIN_BLOCK = 64  # resamples; below, the calls cost more than the sums


def cluster_codes(clusters: ArrayLike | None, n_rows: int) -> tuple[NDArray[np.intp], int]:
    """Return (N,) cluster numbers and how many clusters there are; None: every row is its own.

    Raises
    ------
    InputError
        Wrong length, a missing cluster (with its row), or fewer than two clusters.
    """
    if clusters is None:
        codes = np.arange(n_rows)
    else:
        values = pd.Series(clusters)
        if len(values) != n_rows:
            raise InputError(f"{len(values)} clusters for {n_rows} rows")
        missing = np.flatnonzero(values.isna().to_numpy())
        if missing.size:
            raise InputError(f"row {missing[0]} has no cluster (patient)")
        codes = pd.factorize(values)[0]
    count = int(codes.max()) + 1
    if count < 2:
        raise InputError("all rows belong to one cluster (patient): there is nothing to resample")
    return codes.astype(np.intp), count


def multiplicities(n_clusters: int, n_rows: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks (U, b) of multiplicities, together `n_resamples` columns; each sums to U."""
    generator = np.random.default_rng(seed)
    block = max(MIN_BLOCK, BLOCK_BYTES // (8 * n_rows))
    with progress_bar(
        total=n_resamples, desc="bootstrap", unit="resample", delay=2, leave=False
    ) as bar:
        for start in range(0, n_resamples, block):
            b = min(block, n_resamples - start)
            drawn = generator.integers(0, n_clusters, size=(n_clusters, b))
            flat = (drawn * b + np.arange(b)).ravel()
            counts = np.bincount(flat, minlength=n_clusters * b)
            yield counts.reshape(n_clusters, b).astype(np.float64)
            bar.update(b)


@dataclass(frozen=True, eq=False)
class _Ranks:
    """One class against the rest within one set of rows, sorted once for all resamples."""

    positives: NDArray[np.intp]  # (P,) cluster of each positive row
    negatives: NDArray[np.intp]  # (M,) cluster of each negative row, by ascending score
    below: NDArray[np.intp]  # (P,) negatives that score lower
    up_to: NDArray[np.intp]  # (P,) negatives that score lower or the same

    @classmethod
    def sort(cls, positive: NDArray[np.bool_], score: Floats, codes: NDArray[np.intp]) -> _Ranks:
        order = np.argsort(score[~positive], kind="stable")
        negatives = score[~positive][order]
        return cls(
            codes[positive],
            codes[~positive][order],
            np.searchsorted(negatives, score[positive], side="left"),
            np.searchsorted(negatives, score[positive], side="right"),
        )

    def auroc(self, weights: Floats) -> Floats:
        """(U, b) multiplicities -> (b,) AUROC, NaN where a class is missing."""
        lower = np.zeros((self.negatives.size + 1, weights.shape[1]))  # (M + 1, b)
        for i, cluster in enumerate(self.negatives):  # cumsum over axis 0 takes three times as long
            np.add(lower[i], weights[cluster], out=lower[i + 1])
        positive = weights[self.positives]  # (P, b)
        pairs = np.einsum("pb,pb->b", positive, lower[self.below])
        pairs += np.einsum("pb,pb->b", positive, lower[self.up_to])
        with np.errstate(invalid="ignore"):
            return np.asarray(pairs / (2 * positive.sum(axis=0) * lower[-1]))


@dataclass(frozen=True, eq=False)
class Draws:
    """Metrics of G sets of rows (the split, then every group) in b resamples; K rates a set."""

    auroc: Floats  # (G, b)
    accuracy: Floats  # (G, b)
    log_loss: Floats  # (G, b)
    selection_rate: Floats  # (G, K, b)
    tpr: Floats  # (G, K, b)
    fpr: Floats  # (G, K, b)


class Resampled:
    """A split prepared for resampling; parameters as for `bootstrap_report`.

    `estimates` holds the values of the split itself, by the names of `FairnessReport.to_dict`.
    """

    def __init__(
        self,
        y_true: ArrayLike,
        y_score: ArrayLike,
        groups: pd.DataFrame,
        clusters: ArrayLike | None,
        threshold: float | None,
    ) -> None:
        labels, scores = check_scores(y_true, y_score)
        threshold = check_threshold(threshold, scores.shape[1])
        self.n_rows = labels.size
        self.codes, self.n_clusters = cluster_codes(clusters, self.n_rows)
        self.groupings = groupings(groups, self.n_rows)
        rows = [np.ones(self.n_rows, dtype=np.bool_)]
        rows += [g.codes == code for g in self.groupings for code in range(len(g.names))]
        self._classes = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
        self._ranks = [
            [_Ranks.sort(labels[r] == k, scores[r, k], self.codes[r]) for k in self._classes]
            for r in rows
        ]
        self._sums = self._sum(rows, labels, predict(scores, threshold), log_losses(labels, scores))
        self._whole = whole = self._measure(np.ones((self.n_clusters, 1)))
        self._defined = {f.name: ~np.isnan(getattr(whole, f.name)[..., 0]) for f in fields(Draws)}
        self.estimates = {name: float(value[0]) for name, value in self._combine(whole).items()}

    def values(self, weights: Floats) -> dict[str, Floats]:
        """(U, b) multiplicities -> (b,) values by name, NaN in resamples that do not define them.

        A comparison is over the groups that the split itself defines; a resample that lost one of
        them does not define it.
        """
        return self._combine(self._measure(weights))

    def values_and_deviations(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """(U, b) multiplicities -> `values`, and how far off the groups of each comparison are.

        The (b,) deviations, by the names of the comparisons in `values` that are a worst group or a
        difference between groups, bound how far that figure is from the one of the split in the
        resample: the largest deviation of any group for a worst group, and the range of the groups'
        deviations for a difference.
        """
        draws = self._measure(weights)
        return self._combine(draws), self._deviate(draws)

    def _deviate(self, draws: Draws) -> dict[str, Floats]:
        apart = Draws(
            *(getattr(draws, f.name) - getattr(self._whole, f.name) for f in fields(Draws))
        )
        found: dict[str, list[Floats | None]] = {}
        deviations = {}
        end = 1
        for grouping in self.groupings:
            cells = slice(end, end + len(grouping.names))
            end = cells.stop
            off = {k: v for k, v in self._compare(apart, cells).items() if k in PAIRWISE}
            for metric in ("auroc", "accuracy", "log_loss"):
                groups = getattr(apart, metric)[cells][self._defined[metric][cells]]
                off[f"worst_group_{metric}"] = np.abs(groups).max(axis=0) if len(groups) else None
            for name, value in off.items():
                found.setdefault(name, []).append(value)
                key = f"{name}_by_attribute/{slug(grouping.attribute)}"
                deviations[key] = _or_nan(value, apart.auroc[0])
        for name, values in found.items():
            deviations[name] = _or_nan(_worst(values, np.max), apart.auroc[0])
        return deviations

    def _sum(
        self, rows: list[NDArray[np.bool_]], labels: Labels, predicted: Labels, losses: Floats
    ) -> Floats:
        """(U, G * (3 + 4 K)): what each cluster adds to each set of rows."""
        columns = []
        for r in rows:
            kinds = [r, r & (labels == predicted), r * losses]
            for k in self._classes:
                true, chosen = labels == k, predicted == k
                kinds += [r & true, r & ~true, r & true & chosen, r & ~true & chosen]
            columns += [
                np.bincount(self.codes, weights=kind, minlength=self.n_clusters) for kind in kinds
            ]
        return np.stack(columns, axis=1)

    def _measure(self, weights: Floats) -> Draws:
        sums = (weights.T @ self._sums).T  # (G * (3 + 4 K), b)
        sums = sums.reshape(len(self._ranks), -1, weights.shape[1])
        n, hits, loss = sums[:, 0], sums[:, 1], sums[:, 2]
        positive, negative, tp, fp = (sums[:, 3 + i :: 4] for i in range(4))  # (G, K, b) each
        with np.errstate(invalid="ignore"):  # 0/0 is NaN: not defined
            return Draws(
                np.stack([np.mean([r.auroc(weights) for r in ranks], 0) for ranks in self._ranks]),
                hits / n,
                loss / n,
                (tp + fp) / n[:, None],
                tp / positive,
                fp / negative,
            )

    def _combine(self, draws: Draws) -> dict[str, Floats]:
        recalls = draws.tpr[0]  # (K, b)
        if len(self._classes) == 1:
            recalls = np.stack([recalls[0], 1 - draws.fpr[0, 0]])
        values = {
            "auroc": draws.auroc[0],
            "accuracy": draws.accuracy[0],
            "balanced_accuracy": recalls.mean(axis=0),
            "log_loss": draws.log_loss[0],
        }
        compared: list[dict[str, Floats | None]] = []
        end = 1
        for grouping in self.groupings:
            cells = slice(end, end + len(grouping.names))
            end = cells.stop
            attribute = slug(grouping.attribute)
            for name, auroc, accuracy in zip(
                grouping.names, draws.auroc[cells], draws.accuracy[cells], strict=True
            ):
                values[f"auroc_by_group/{attribute}.{slug(name)}"] = auroc
                values[f"accuracy_by_group/{attribute}.{slug(name)}"] = accuracy
            compared.append(self._compare(draws, cells))
            for name, value in compared[-1].items():
                values[f"{name}_by_attribute/{attribute}"] = _or_nan(value, values["auroc"])
        for name in compared[0] if compared else ():
            found = _worst(
                [found[name] for found in compared], np.max if DISPARITIES[name] else np.min
            )
            values[name] = _or_nan(found, values["auroc"])
        return values

    def _compare(self, draws: Draws, cells: slice) -> dict[str, Floats | None]:
        """Do as `disparities` for b resamples at once; None where the split defines nothing."""
        defined = {name: mask[cells] for name, mask in self._defined.items()}
        auroc = draws.auroc[cells][defined["auroc"]]  # (groups that define it, b)
        accuracy = draws.accuracy[cells][defined["accuracy"]]
        loss = draws.log_loss[cells][defined["log_loss"]]
        both = defined["tpr"] & defined["fpr"]
        tpr_difference = _differences(draws.tpr[cells], both)
        fpr_difference = _differences(draws.fpr[cells], both)
        selection = _differences(draws.selection_rate[cells], defined["selection_rate"])
        spread = np.abs(draws.auroc[0] - auroc).sum(axis=0)
        return {
            "worst_group_auroc": auroc.min(axis=0) if len(auroc) else None,
            "auroc_gap": np.ptp(auroc, axis=0) if len(auroc) > 1 else None,
            "es_auroc": draws.auroc[0] / (1 + spread) if len(auroc) else None,
            "worst_group_accuracy": accuracy.min(axis=0) if len(accuracy) else None,
            "accuracy_gap": np.ptp(accuracy, axis=0) if len(accuracy) > 1 else None,
            "worst_group_log_loss": loss.max(axis=0) if len(loss) else None,
            "demographic_parity_difference": _worst(selection, np.max),
            "equalized_odds_difference": _worst([*tpr_difference, *fpr_difference], np.max),
            "equal_opportunity_difference": _worst(
                _differences(draws.tpr[cells], defined["tpr"]), np.max
            ),
        }


def _differences(rates: Floats, defined: NDArray[np.bool_]) -> list[Floats | None]:
    """(G, K, b) rates, (G, K) -> per class the (b,) difference over the groups that define it."""
    kept = [rates[defined[:, k], k] for k in range(rates.shape[1])]
    return [np.ptp(rate, axis=0) if len(rate) > 1 else None for rate in kept]


def _worst(found: Sequence[Floats | None], worse: Callable[..., Floats]) -> Floats | None:
    values = [value for value in found if value is not None]
    return worse(values, axis=0) if values else None


def _or_nan(value: Floats | None, like: Floats) -> Floats:
    return np.full_like(like, np.nan) if value is None else value
