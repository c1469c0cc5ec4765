"""How to train what the mask lets train: strategies by name, a file for each idea."""

from fairtune.training.strategies import (  # noqa: F401  (fill the registry)
    balancing,
    erm,
    group_dro,
)
from fairtune.training.strategies.base import (
    STRATEGIES,
    Batch,
    Strategy,
    Tactic,
    Task,
    make_strategy,
)

__all__ = ["STRATEGIES", "Batch", "Strategy", "Tactic", "Task", "make_strategy"]
