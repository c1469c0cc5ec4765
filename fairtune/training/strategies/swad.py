"""Dense weight averaging over the stretch in which the validation loss is low."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task
from fairtune.training.strategies.swa import with_statistics
from fairtune.training.tensors import TrainedTensors

Values = dict[str, Tensor]


@STRATEGIES.register("swad")
class SWAD(Strategy):
    """Keeps the mean of the weights of every step in a valley of the validation loss.

    The loss is looked at a few times an epoch. The valley begins at a loss that the next
    `converge` - 1 do not undercut, and ends where the last `tolerate` losses all exceed `tolerance`
    times the mean at its beginning. Before it begins, what is kept is the mean of the steps since
    the last look, as the authors' code does. The groups of the validation split play no part.

    References
    ----------
    Cha et al. (2021), "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS,
    arXiv:2102.08604, algorithm 1.
    """

    looks: int = Field(
        4, ge=1, description="Looks at the validation loss in each epoch; each is a pass over it."
    )
    converge: int = Field(3, ge=1, description="Looks without a lower loss that begin the valley.")
    tolerate: int = Field(6, ge=1, description="Looks above the tolerance that end the valley.")
    tolerance: float = Field(
        1.3, ge=1, description="Loss that ends the valley, relative to its beginning: r."
    )

    def start(self, task: Task) -> Tactic:
        """Begin before the valley."""
        return SWADTactic(self, task)


class SWADTactic(Tactic):
    """Averages the steps between looks, and leaves it to the valley which of them count."""

    changing = ("_segment",)

    def __init__(self, options: SWAD, task: Task) -> None:
        self._task = task
        self._view = TrainedTensors(task.model)
        self._every = max(1, task.steps // options.looks)
        self._segment = AveragedModel(self._view)
        self.valley = Valley(options.converge, options.tolerate, options.tolerance)

    def after_step(self) -> None:
        """Add the weights to the segment; look at the loss where it is time."""
        if self.valley.ended:
            return
        self._segment.update_parameters(self._view)
        if int(self._segment.n_averaged) < self._every:
            return
        values = self._view.named(self._segment.module.state_dict())
        weights = {name: v.cpu() for name, v in values.items() if v.is_floating_point()}
        self.valley.add(weights, self._task.validation_loss())
        self._segment = AveragedModel(self._view)

    def state(self) -> dict[str, Any]:
        """Return the segment and the valley."""
        return {**super().state(), "valley": self.valley.state()}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take over the segment and the valley."""
        self.valley.go_on_from(state["valley"])
        super().go_on_from({"_segment": state["_segment"]})

    def kept(self, epoch: int) -> Values | None:
        """Return the mean over the valley so far, with statistics that fit it."""
        mean = self.valley.mean()
        if mean is None:
            return None
        device = self._task.device
        values = {name: value.to(device) for name, value in mean.items()}
        return with_statistics(self._task, values, epoch)


class Valley:
    """Finds the valley in a series of losses, and averages what lies in it.

    It holds no more than `converge` + `tolerate` of the values at once.
    """

    def __init__(self, converge: int, tolerate: int, tolerance: float) -> None:
        self._converge, self._tolerate, self._tolerance = converge, tolerate, tolerance
        self._recent: deque[tuple[Values, float]] = deque()  # may yet turn out to lie outside
        self._sum: Values = {}
        self._n_summed = 0
        self.threshold: float | None = None
        """Loss over which the valley ends; None before it begins."""
        self.ended = False

    def add(self, values: Values, loss: float) -> None:
        """Take the next segment and the loss at its end."""
        if self.ended:
            return
        self._recent.append((values, loss))
        if self.threshold is None:
            self._look_for_the_beginning()
            return
        while len(self._recent) > self._tolerate:
            self._count(self._recent.popleft()[0])
        losses = [loss for _, loss in self._recent]
        if len(losses) == self._tolerate and min(losses) > self.threshold:
            self.ended = True
            self._recent.clear()

    def state(self) -> dict[str, Any]:
        """Return what another valley needs to go on from here."""
        return {**vars(self), "_recent": list(self._recent)}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        vars(self).update(state, _recent=deque(state["_recent"]))

    def _look_for_the_beginning(self) -> None:
        while len(self._recent) > self._converge:
            self._recent.popleft()
        losses = [loss for _, loss in self._recent]
        if len(losses) == self._converge and losses[0] == min(losses):
            self.threshold = self._tolerance * sum(losses) / len(losses)

    def _count(self, values: Values) -> None:
        self._n_summed += 1
        for name, value in values.items():
            self._sum[name] = self._sum[name] + value if name in self._sum else value.clone()

    def mean(self) -> Values | None:
        """Return the mean over the valley; the last segment before it begins; None before any."""
        if self.threshold is None:
            return self._recent[-1][0] if self._recent else None
        total = dict(self._sum)
        for values, _ in self._recent:
            total = {name: total[name] + v if name in total else v for name, v in values.items()}
        n = self._n_summed + len(self._recent)
        return {name: value / n for name, value in total.items()}
