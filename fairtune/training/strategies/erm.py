"""Plain training: empirical risk minimisation."""

from __future__ import annotations

from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task


@STRATEGIES.register("erm")
class ERM(Strategy):
    """The recipe's loss, every training row once an epoch, the weights of the last step.

    References
    ----------
    Vapnik (1991), "Principles of Risk Minimization for Learning Theory", NeurIPS.
    """

    def start(self, task: Task) -> Tactic:
        """Begin a fine-tune in which nothing is changed."""
        return Tactic()
