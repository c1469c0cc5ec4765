"""How to train what the mask lets train: strategies by name, a file for each idea."""

from fairtune.training.strategies import (  # noqa: F401  (fill the registry)
    adversarial,
    balancing,
    cfair,
    dfr,
    domain_independent,
    ema,
    end,
    erm,
    fairprune,
    fscl,
    group_dro,
    lnl,
    odr,
    sharpness,
    swa,
    swad,
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
