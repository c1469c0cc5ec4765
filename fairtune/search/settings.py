"""What a search does, as one frozen value; each field is a key under `search` in a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from fairtune.registry import unknown_name
from fairtune.training.recipe import STRATEGY_OPTION, Recipe

WORKER_KEYS = (
    "search.executor",
    "search.gpus_per_trial",
    "search.parallelism",
    "search.spark_master",
)
"""Keys of a configuration that say where work is done, not what."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LearningRateRange(_Section):
    """The learning rates a search draws from, log-uniformly."""

    low: float = Field(1e-4, gt=0, description="Smallest learning rate.")
    high: float = Field(1e-2, gt=0, description="Largest learning rate.")

    @model_validator(mode="after")
    def _ordered(self) -> LearningRateRange:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        return self


class ExtraRange(_Section):
    """A further number that a search draws, uniformly or log-uniformly."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool = Field(False, description="Draw log-uniformly, as for values over magnitudes.")

    @model_validator(mode="after")
    def _ordered(self) -> ExtraRange:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0, not {self.low}")
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        """The values that must be allowed, for all between them to be."""
        return (self.low, self.high)

    def nearest(self, value: float | str | None) -> float:
        """Return the value in the range that is nearest to what a recipe has; `low` for none."""
        if value is None or isinstance(value, str):
            return self.low
        return min(max(float(value), self.low), self.high)


class ExtraChoice(_Section):
    """A further setting that a search draws from a list."""

    choices: tuple[float | str, ...] = Field(min_length=2, description="Two values or more.")

    @property
    def ends(self) -> tuple[float | str, ...]:
        """All values."""
        return self.choices

    def nearest(self, value: float | str | None) -> float | str:
        """Return the value itself when it is on the list, else the first."""
        return next((choice for choice in self.choices if choice == value), self.choices[0])


def _kind(value: object) -> str:
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "choices" if "choices" in given else "range"


Extra = Annotated[
    Annotated[ExtraRange, Tag("range")] | Annotated[ExtraChoice, Tag("choices")],
    Discriminator(_kind),
]


class PruningSettings(_Section):
    """Which trials end before their last epoch."""

    rule: Literal["none", "asha", "halving", "median"] = Field(
        "none",
        description="`asha` = asynchronous successive halving (Li et al. 2020): a trial pauses at each "
        "rung and goes on once it is among the best 1/reduction there; `halving` = its stopping variant: "
        "a trial goes on at once or never; `median` = those above the median go on.",
    )
    rungs: tuple[int, ...] | None = Field(
        None,
        description="Epochs after which weak trials are stopped; null = after 2, 4, 8, 16 and so on.",
    )
    reduction: int = Field(3, ge=2, description="Of how many trials at a rung one goes on.")
    min_trials: int = Field(
        3,
        ge=1,
        description="Trials that must have reached a rung before it stops any (`halving`, `median`).",
    )

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if rungs is None:
            return None
        if not rungs or min(rungs) < 1 or list(rungs) != sorted(set(rungs)):
            raise ValueError("must be epochs from 1 on, each above the one before")
        return rungs

    def rungs_within(self, epochs: int, judge_every: int = 1) -> tuple[int, ...]:
        """Return the rungs of a training of so many epochs, judged so often; () without a rule.

        Those not given double from 2 on, rounded up to an epoch that is judged: the first ranks
        trials badly (``docs/searching.md``), and stands alone where a training has but two.
        """
        if self.rule == "none":
            return ()
        if self.rungs is not None:
            return self.rungs
        doubling = (2**k for k in range(1, epochs.bit_length()))
        judged = sorted({judge_every * -(-rung // judge_every) for rung in doubling})
        found = [rung for rung in judged if rung < epochs] or [judge_every]
        return tuple(rung for rung in found if rung < epochs)


class FinalSettings(_Section):
    """How the winner is found among the best trials: an honest second look."""

    candidates: int = Field(
        3, ge=1, description="Trials, best on validation first, that are fine-tuned again."
    )
    seeds: int = Field(
        3, ge=1, description="Fine-tunes of each candidate, with seeds the search has not used."
    )
    resamples: int = Field(
        200,
        ge=0,
        description="Resamples of the validation patients for the standard error; 0 = seeds alone.",
    )
    max_auroc_loss: float | None = Field(
        None,
        ge=0,
        description="Candidates whose overall AUROC is more than this below the best are out.",
    )


DROP_PATH = "drop_path"
EXTRAS = ("weight_decay", "layer_decay", "label_smoothing", "class_weights", DROP_PATH)


class SearchSettings(_Section):
    """The outer loop: what it may choose, how it chooses, and when it ends."""

    space: str = Field("auto_peft1", description="What the mask bits stand for; `fairtune spaces`.")
    objective: str = Field(
        "worst_group_auroc", description="The validation figure that the search improves."
    )
    algorithm: Literal["tpe", "atpe", "rand", "anneal"] = Field(
        "tpe", description="hyperopt's name."
    )
    startup_trials: int = Field(
        10, ge=1, description="Trials before TPE trusts its model; until then it draws at random."
    )
    learning_rate: LearningRateRange = LearningRateRange()
    extra: dict[str, Extra] = Field(
        {},
        description="Further dimensions: `{low, high, log}` or `{choices}`. `drop_path` is the rate "
        "of stochastic depth in the last block, `strategy.<option>` an option of `train.strategy`; "
        "`weight_decay`, `layer_decay`, `label_smoothing` and `class_weights` are keys of `train`.",
    )
    known_masks: bool = Field(
        True,
        description="Try all, none, norms only and attention only first, so that the search never "
        "ends below them on validation.",
    )
    known_learning_rates: tuple[float, ...] | None = Field(
        None, description="Learning rates of the known masks; null = train.learning_rate alone."
    )
    trials: int = Field(24, ge=1, description="Fine-tunes to make, the known masks among them.")
    max_minutes: float | None = Field(None, gt=0, description="No new trial after this wall time.")
    max_epochs: int | None = Field(None, ge=1, description="No new trial after this many epochs.")
    patience: int | None = Field(
        None, ge=1, description="No new trial after this many without a better objective."
    )
    pruning: PruningSettings = PruningSettings()
    final: FinalSettings = FinalSettings()
    executor: Literal["serial", "spark"] = Field("serial", description="Where trials run.")
    parallelism: int = Field(2, ge=1, le=128, description="Trials at once, with executor=spark.")
    spark_master: str | None = Field(
        None, description="Spark's master; null = SPARK_MASTER_URL, else local[parallelism]."
    )
    gpus_per_trial: float = Field(
        1.0,
        gt=0,
        le=1,
        description="GPUs that a trial asks a Spark cluster for, with device=cuda; 0.5 = two share one.",
    )

    @field_validator("gpus_per_trial")
    @classmethod
    def _spark_can_give_it(cls, gpus: float) -> float:
        if 0.5 < gpus < 1:
            raise ValueError("must be 1, or 0.5 and less: Spark gives no other shares")
        return gpus

    @field_validator("extra")
    @classmethod
    def _allowed(cls, extra: dict[str, ExtraRange | ExtraChoice]) -> dict[str, Any]:
        for name, what in extra.items():
            if name.startswith(STRATEGY_OPTION):  # the configuration knows the strategy
                continue
            if name not in EXTRAS:
                raise unknown_name("dimension", name, (*EXTRAS, f"{STRATEGY_OPTION}<option>"))
            for value in what.ends:
                if name != DROP_PATH:
                    _check_recipe(name, value)
                elif isinstance(value, str) or not 0 <= value < 1:
                    raise ValueError(f"{name} must be from 0 to below 1, not {value!r}")
        return extra


def _check_recipe(name: str, value: float | str) -> None:
    try:
        Recipe.model_validate({name: value})
    except ValidationError as error:
        raise ValueError(f"{name} cannot be {value!r}: {error.errors()[0]['msg']}") from None
