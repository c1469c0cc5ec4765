"""Deep feature reweighting: the classifier fitted anew on balanced data when training is over."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fairtune.errors import InputError
from fairtune.peft.parts import head_modules
from fairtune.seeding import seed as named_seed
from fairtune.training.features import classifier, features_of
from fairtune.training.strategies.balancing import cell_index
from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task

NEVER = -50.0
"""Bias of a class that no row has: its probability is 0 to the last bit of a float32."""


@STRATEGIES.register("dfr")
class DFR(Strategy):
    """Plain training; after the last epoch the classifier is fitted anew on balanced subsets.

    Each subset has as many training rows of every class within every group as the smallest of these
    cells has. Logistic regression with an L1 penalty is fitted to the standardised features of each,
    and the mean of the fits becomes the classifier. This is the paper's variant on training data (DFR
    with Tr-Tr): the validation split judges, so it must not train. A fine-tune that is stopped early
    keeps its classifier.

    References
    ----------
    Kirichenko, Izmailov, Wilson (2023), "Last Layer Re-Training is Sufficient for Robustness to
    Spurious Correlations", ICLR, arXiv:2204.02937, section 4 and appendix B.
    """

    uses_groups: ClassVar[bool] = True
    strength: float = Field(
        1.0, gt=0, description="Inverse strength of the penalty: scikit-learn's C."
    )
    subsets: int = Field(10, ge=1, description="Balanced subsets whose fits are averaged.")

    def start(self, task: Task) -> Tactic:
        """Begin with plain training."""
        classifier(task.model)
        if len(np.unique(task.labels)) < 2:
            raise InputError("strategy 'dfr' needs training rows of at least two classes")
        return DFRTactic(self, task)


class DFRTactic(Tactic):
    """Waits for the last epoch."""

    def __init__(self, options: DFR, task: Task) -> None:
        self._options, self._task = options, task

    def kept(self, epoch: int) -> dict[str, Tensor] | None:
        """Return the refitted classifier after the last epoch."""
        task = self._task
        if epoch < task.epochs:
            return None
        weight, bias = refit(
            features_of(task.model, task.views()).numpy(),
            task.labels,
            cell_index(task, "group*class")[0],
            task.n_classes,
            strength=self._options.strength,
            subsets=self._options.subsets,
            seed=named_seed(task.seed, "subsets"),
        )
        (name, head), *_ = head_modules(task.model).items()
        found = {f"{name}.weight": torch.from_numpy(weight).float()}
        if getattr(head, "bias", None) is not None:
            found[f"{name}.bias"] = torch.from_numpy(bias).float()
        return found


def refit(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    cells: NDArray[np.int64],
    n_classes: int,
    *,
    strength: float,
    subsets: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a linear classifier to balanced subsets of features.

    Parameters
    ----------
    features
        (n, D).
    labels, cells
        (n,): the classes, and what is to be balanced.

    Returns
    -------
    weight
        (C, D), for the features as they are.
    bias
        (C,); a class without rows has `NEVER`.
    """
    rng = np.random.default_rng(seed)
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale[scale < 1e-8] = 1.0
    standard = (features - mean) / scale
    members = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    smallest = min(len(rows) for rows in members)
    weight = np.zeros((n_classes, features.shape[1]))
    bias = np.zeros(n_classes)
    for _ in range(subsets):
        rows = np.concatenate([rng.choice(own, smallest, replace=False) for own in members])
        one_weight, one_bias = _fit(standard[rows], labels[rows], n_classes, strength)
        weight += one_weight / subsets
        bias += one_bias / subsets
    weight /= scale
    return weight, bias - weight @ mean


def _fit(
    features: NDArray[np.float64], labels: NDArray[np.int64], n_classes: int, strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (C, D) and bias (C,) whose softmax is the logistic regression."""
    two = len(np.unique(labels)) == 2
    # Two names of one penalty: the older releases of scikit-learn know one, the newer the other.
    signature = inspect.signature(LogisticRegression)
    old = signature.parameters["penalty"].default == "l2"
    penalty: dict[str, Any] = {"penalty": "l1"} if old else {"l1_ratio": 1.0}
    model = LogisticRegression(
        C=strength,
        solver="liblinear" if two else "saga",
        max_iter=1000,
        tol=1e-4 if two else 1e-3,
        random_state=0,
        **penalty,
    ).fit(features, labels)
    weight = np.zeros((n_classes, features.shape[1]))
    bias = np.full(n_classes, NEVER)
    # With two classes scikit-learn has one row, the difference of the two logits.
    signs = np.array([[-0.5], [0.5]]) if two else np.eye(len(model.classes_))
    weight[model.classes_] = signs @ model.coef_
    bias[model.classes_] = signs @ model.intercept_
    return weight, bias
