"""The inner loop: fine-tune a model under its mask, judged after every epoch.

Read it from the top: `fine_tune` is the loop, the rest are its parts. What trains is decided before,
by ``fairtune.peft.apply_mask``; the loop only follows ``requires_grad``. How it trains is the
strategy's: plain training, or one of ``fairtune.training.strategies``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairtune.data.batches import Augmentation, eval_batches, train_batches
from fairtune.fairness import evaluate
from fairtune.peft import delta_state, set_train_mode
from fairtune.seeding import seed as named_seed
from fairtune.training.features import feature_tap
from fairtune.training.groups import group_index
from fairtune.training.hardware import deterministic, prepare
from fairtune.training.memory import on_device
from fairtune.training.optimization import (
    LOWEST_LEARNING_RATE,
    class_weights,
    make_optimizer,
    make_schedule,
)
from fairtune.training.pause import load_state, random_state, save_state, set_random_state
from fairtune.training.predict import Judge
from fairtune.training.recipe import Recipe
from fairtune.training.result import DivergedError, Epoch, FineTuneResult
from fairtune.training.split import ImageSpec, Split
from fairtune.training.step import Stepper
from fairtune.training.strategies import Task, make_strategy
from fairtune.training.tensors import holding, put


def fine_tune(
    model: nn.Module,
    train: Split,
    val: Split,
    spec: ImageSpec,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[Epoch], bool] = lambda epoch: True,
    on_step: Callable[[int], object] = lambda images: None,
    paused: Path | None = None,
    pauses_at: Container[int] = (),
    done: int = 0,
) -> FineTuneResult:
    """Fine-tune what the mask left trainable, in place.

    Parameters
    ----------
    model
        On any device; its ``requires_grad`` flags say what trains.
    train, val
        The splits to learn from and to judge on. There is no way to hand over a test split.
    spec, recipe
        How images enter, and the hyperparameters.
    seed
        Of order, augmentation and dropout. The same seed on the same machine gives the same bits.
    on_epoch
        Called after every epoch that is judged; False ends the fine-tune.
    on_step
        Told after every step how many images it had.
    paused, pauses_at
        Where a fine-tune that `on_epoch` stops leaves its state, and after which epochs.
    done
        Epochs after which it paused: it goes on from its state, to the same bits as if it had never
        paused; from the beginning, with the same result, where the state is not to be found.

    Raises
    ------
    DivergedError
        When the training loss is no longer finite.
    InputError
        When the data does not fit the recipe.
    """
    result = FineTuneResult()
    with deterministic(recipe.deterministic), ExitStack() as held:
        run = _FineTune(model, train, val, spec, recipe, seed, device, held)
        begun = paused is not None and done > 0 and run.go_on_from(paused, done)
        for number in range(done + 1 if begun else 1, recipe.epochs + 1):
            trained = run.train_epoch(number, on_step)
            if number % recipe.judge_every and number < recipe.epochs:
                continue
            epoch, result.probabilities = run.judge(trained)
            result.epochs.append(epoch)
            result.micro_batch_size = run.step.micro_batch_size
            if not on_epoch(epoch):
                result.stopped_at = number if number < recipe.epochs else None
                if paused is not None and number in pauses_at:
                    run.pause(paused, number)
                break
        put(model, run.kept or {})
    return result


@dataclass(frozen=True)
class _Trained:
    """One epoch's training."""

    number: int
    loss: float
    seconds: float
    waiting: float
    images: int
    steps: int


class _FineTune:
    """What one fine-tune needs, made before its first epoch; then epoch by epoch."""

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        val: Split,
        spec: ImageSpec,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        held: ExitStack,
    ) -> None:
        self.model, self.val, self.recipe = model, val, recipe
        self.train = replace(train, images=on_device(train.images, device))
        self.spec, self.seed, self.device = spec, seed, device
        self.strategy = make_strategy(recipe.strategy, recipe.strategy_options)
        whole, rest = divmod(len(train), recipe.batch_size)
        self.steps = max(1, whole + (rest > 1))  # `train_batches` leaves out a last batch of one
        prepare(model, recipe, device, self.steps * recipe.epochs)
        torch.manual_seed(named_seed(seed, "dropout"))
        self.judged = Judge(
            model,
            replace(val, images=on_device(val.images, device)),
            spec,
            batch_size=recipe.eval_batch_size,
            device=device,
            precision=recipe.precision,
        )
        task = self._task()
        self.tactic = self.strategy.start(task)
        self.optimizer = make_optimizer(model, recipe, self.tactic.auxiliary)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps)
        self.groups = None if task.groups is None else torch.from_numpy(task.groups).to(device)
        self.updates = 0
        self.kept: Mapping[str, torch.Tensor] | None = None
        self.step = Stepper(
            model,
            self.tactic,
            self._criterion(),
            self.optimizer,
            micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
            precision=recipe.precision,
            clip_gradient=recipe.clip_gradient,
            tap=held.enter_context(feature_tap(model, self.strategy.uses_features)),
        )

    def train_epoch(self, number: int, on_step: Callable[[int], object]) -> _Trained:
        """Train one epoch, the `number`th."""
        set_train_mode(self.model)
        started, waiting, seen = time.perf_counter(), 0.0, 0
        total = torch.zeros((), device=self.device)  # read once: a GPU is not waited for every step
        order = named_seed(self.seed, "epoch", number)
        steps = 0
        asked = time.perf_counter()
        with closing(self._batches(order, self.tactic.row_weights(number))) as batches:
            for x, y, rows in batches:
                waiting += time.perf_counter() - asked
                self.schedule.step_update(self.updates)
                groups = None if self.groups is None else self.groups[rows]
                total += self.step(x, y, groups) * len(y)
                seen += len(y)
                steps += 1
                self.updates += 1
                on_step(len(y))
                asked = time.perf_counter()
        loss = float(total) / seen
        if not np.isfinite(loss):
            raise DivergedError(
                f"the training loss became {loss} in epoch {number}: lower the learning rate"
            )
        seconds = time.perf_counter() - started
        return _Trained(number, loss, seconds, waiting, seen, steps)

    def judge(self, trained: _Trained) -> tuple[Epoch, NDArray[np.float64]]:
        """Judge the weights that the strategy would keep now; returns the predictions as well."""
        started = time.perf_counter()
        self.kept = self.tactic.kept(trained.number)
        with holding(self.model, self.kept):
            probabilities = self.judged()
        report = evaluate(self.val.labels, probabilities, self.val.groups)
        epoch = Epoch(
            number=trained.number,
            loss=trained.loss,
            learning_rate=max(group["lr"] for group in self.optimizer.param_groups),
            seconds=trained.seconds,
            images_per_second=trained.images / trained.seconds,
            report=report,
            steps=trained.steps,
            waiting_seconds=trained.waiting,
            validation_seconds=time.perf_counter() - started,
        )
        return epoch, probabilities

    def pause(self, path: Path, number: int) -> None:
        """Leave all that changes in training, after the `number`th epoch."""
        state = {
            "epoch": number,
            "device": self.device.type,
            "updates": self.updates,
            "model": delta_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "tactic": self.tactic.state(),
            "random": random_state(self.device),
            "micro_batch_size": self.step.micro_batch_size,
        }
        save_state(path, state)

    def go_on_from(self, path: Path, done: int) -> bool:
        """Take over the state after so many epochs; says whether it is there, and of this device."""
        state = load_state(path)
        if state is None or (state["epoch"], state["device"]) != (done, self.device.type):
            return False
        put(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tactic.go_on_from(state["tactic"])
        set_random_state(self.device, state["random"])
        self.updates, self.step.micro_batch_size = state["updates"], state["micro_batch_size"]
        return True

    def _task(self) -> Task:
        """Tell the strategy what it takes part in: the groups only if it declares that it uses them."""
        train, recipe, spec = self.train, self.recipe, self.spec
        groups, names = group_index(train.groups) if self.strategy.uses_groups else (None, ())

        def validation_loss() -> float:
            scores = self.judged()
            chosen = scores[np.arange(len(self.val)), self.val.labels]
            return float(-np.log(np.clip(chosen, 1e-12, None)).mean())

        return Task(
            model=self.model,
            labels=train.labels,
            n_classes=len(train.classes),
            groups=groups,
            n_groups=len(names),
            epochs=recipe.epochs,
            steps=self.steps,
            learning_rate=recipe.learning_rate,
            lowest_learning_rate=recipe.learning_rate * LOWEST_LEARNING_RATE,
            seed=named_seed(self.seed, "strategy"),
            device=self.device,
            validation_loss=validation_loss,
            draw=lambda order: self._batches(order, None),
            views=lambda: eval_batches(
                train.images,
                train.rows,
                batch_size=self.judged.batch_size,
                size=spec.size,
                mean=spec.mean,
                std=spec.std,
                device=self.device,
            ),
        )

    def _criterion(self) -> nn.CrossEntropyLoss:
        train, recipe = self.train, self.recipe
        weight = class_weights(
            train.labels,
            len(train.classes),
            recipe.class_weights,
            self.device,
            self.tactic.importance(),
        )
        return nn.CrossEntropyLoss(weight=weight, label_smoothing=recipe.label_smoothing)

    def _batches(
        self, order: int, weights: NDArray[np.float64] | None
    ) -> Generator[tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]], None, None]:
        """Yield x, y and the position of each row in the split, of one epoch."""
        train, augment = self.train, self.recipe.augment
        batches = train_batches(
            train.images,
            train.rows,
            train.labels,
            batch_size=self.recipe.batch_size,
            size=self.spec.size,
            mean=self.spec.mean,
            std=self.spec.std,
            device=self.device,
            augmentation=Augmentation(
                crop_scale=augment.crop_scale,
                crop_ratio=augment.crop_ratio,
                horizontal_flip=augment.horizontal_flip,
            ),
            seed=order,
            weights=weights,
        )
        position = np.zeros(len(train.images), dtype=np.int64)
        position[train.rows] = np.arange(len(train))
        return ((x, y, position[rows]) for x, y, rows in batches)
