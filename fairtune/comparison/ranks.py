"""How methods rank, and within what: tasks, or the seeds of the one task that there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scikit_posthocs
from scipy import stats

from fairtune.comparison.settings import Comparison

LARGER_IS_BETTER = {"auroc": True, "worst_group_auroc": True, "auroc_gap": False}


@dataclass(frozen=True, eq=False)
class Ranking:
    """How k methods rank over n blocks.

    Attributes
    ----------
    ranks
        Average rank by method, 1 is best, ascending.
    statistic, p_value
        Friedman's chi-squared and its p; NaN for fewer than 3 methods or 2 blocks.
    nemenyi
        (k, k) p-values of the post-hoc test, in the order of `ranks`.
    critical_difference
        Difference of average ranks that is significant at 0.05.
    n_blocks, block
        Blocks in which every method has a value, and what a block is: ``task`` or ``seed``.
    """

    ranks: pd.Series
    statistic: float
    p_value: float
    nemenyi: pd.DataFrame
    critical_difference: float
    n_blocks: int
    block: str = "block"


def rank(values: pd.DataFrame, *, larger_is_better: bool) -> Ranking | None:
    """Rank methods within blocks, and test whether their ranks differ.

    Parameters
    ----------
    values
        A row per block, a column per method; rows with a NaN are left out. The name of the index
        says what a block is.

    Returns
    -------
    Ranking or None
        None with fewer than two methods, or without a whole block.

    References
    ----------
    Demšar (2006), "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7; the
    tests are SciPy's and scikit-posthocs'.
    """
    whole = values.dropna()
    n, k = whole.shape
    if n < 1 or k < 2:
        return None
    within = whole.rank(axis=1, ascending=not larger_is_better)
    ranks = within.mean().sort_values(kind="stable")
    whole = whole[ranks.index]
    statistic = p = critical = math.nan
    nemenyi = pd.DataFrame(math.nan, index=ranks.index, columns=ranks.index)
    if n > 1:
        q = float(stats.studentized_range.ppf(0.95, k, np.inf)) / math.sqrt(2)
        critical = q * math.sqrt(k * (k + 1) / (6 * n))
        if k > 2:
            statistic, p = map(float, stats.friedmanchisquare(*whole.to_numpy().T))
            found = scikit_posthocs.posthoc_nemenyi_friedman(whole.to_numpy())
            nemenyi = pd.DataFrame(found.to_numpy(), index=ranks.index, columns=ranks.index)
    return Ranking(ranks, statistic, p, nemenyi, critical, n, str(values.index.name or "block"))


def ranking(models: pd.DataFrame, metric: str, comparison: Comparison) -> Ranking | None:
    """Rank methods by a figure of test, in blocks that are independent as far as may be.

    With several tasks a block is a task, and ranked are the means over its seeds: seeds of one task
    are repetitions, no data sets of their own. With one task a block is a seed, and the ranks say
    what holds for that task. Methods that take the best of others are not ranked: each of their
    figures is another method's, which they would tie with.

    References
    ----------
    Demšar (2006), "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7,
    section 3.2.2: Friedman's test ranks within data sets.
    """
    chosen = {m.name for m in comparison.methods if m.best_of}
    ranked = models[~models["method"].isin(chosen)]
    block = "task" if models["task"].nunique() > 1 else "seed"
    blocks = ranked.pivot_table(index=block, columns="method", values=f"test/{metric}")
    return rank(blocks, larger_is_better=LARGER_IS_BETTER[metric])


def ranks_table(rankings: dict[str, Ranking | None]) -> pd.DataFrame:
    """Tabulate the ranks by several figures, with the tests."""
    parts = [
        pd.DataFrame(
            {
                "metric": metric,
                "method": found.ranks.index,
                "average_rank": found.ranks.to_numpy(),
                "block": found.block,
                "blocks": found.n_blocks,
                "friedman": found.statistic,
                "friedman_p": found.p_value,
                "critical_difference": found.critical_difference,
            }
        ).join(found.nemenyi.reset_index(drop=True).add_prefix("nemenyi_p_"))
        for metric, found in rankings.items()
        if found is not None
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
