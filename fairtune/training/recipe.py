"""What a masked fine-tune does, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairtune.training.strategies import make_strategy

STRATEGY_OPTION = "strategy."
"""What an option of the strategy is called where it stands beside the recipe's own keys."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class Augment(BaseModel):
    """Random changes to the training images; validation and test images are never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_scale: tuple[Fraction, Fraction] = Field(
        (0.08, 1.0),
        description="Share of the image's area that a random crop keeps; the default is the published "
        "method's. Raise the lower one (0.5, say) where a crop could miss what the label hangs on.",
    )
    crop_ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="Width over height of the random crop."
    )
    horizontal_flip: Fraction = Field(
        0.5, description="Chance of a mirror image. 0 where left and right mean something."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high, not {low}, {high}")
        return self


class Recipe(BaseModel):
    """Hyperparameters of one fine-tune. The mask is not among them: the model brings it along."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(
        5, ge=1, description="Passes over the training split. Raise it while validation improves."
    )
    batch_size: int = Field(64, ge=2, description="Images an optimiser step sees.")
    judge_every: int = Field(
        1,
        ge=1,
        description="Epochs from one look at the validation split to the next; the last is always "
        "judged. Raise it where validation is much larger than training.",
    )
    eval_batch_size: int = Field(
        256, ge=1, description="Images a forward pass without gradients sees."
    )
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="Peak learning rate; a search draws its own, except for the known masks.",
    )
    optimizer: str = Field("adamw", description="Any optimiser name that timm knows.")
    weight_decay: float = Field(
        0.01, ge=0, description="Decay of weight matrices; biases and norms never decay."
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="Learning-rate factor from one layer to the one before it."
    )
    schedule: str = Field("cosine", description="Any scheduler name that timm knows.")
    warmup: Fraction = Field(
        0.1, description="Share of all steps over which the learning rate rises."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Mass moved to the other classes.")
    class_weights: Literal["balanced", "none"] | tuple[float, ...] = Field(
        "balanced",
        description="Loss weight of each class: `balanced` = inverse to its training frequency.",
    )
    clip_gradient: float | None = Field(None, gt=0, description="Largest norm of a gradient.")
    augment: Augment = Augment()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="`auto` = bf16 where the processor or GPU computes it natively."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=2,
        description="Images in memory at once, for batch norms two at least; gradients add up to "
        "`batch_size`.",
    )
    checkpoint_activations: bool = Field(
        False,
        description="Keep no activations inside blocks but compute them again: memory for time.",
    )
    compile: Literal["auto", "block", "none"] = Field(
        "auto",
        description="Compile a transformer's blocks, which all masks share: `auto` = in long trials on "
        "a GPU.",
    )
    deterministic: bool = Field(
        False,
        description="On a GPU too, the same seed gives the same bits; slower there.",
    )
    strategy: str = Field(
        "erm",
        description="How to train what the mask lets train; `erm` is plain training. "
        "docs/strategies.md lists the others.",
    )
    strategy_options: dict[str, Any] = Field({}, description="The strategy's own options.")

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other values; ``strategy.<option>`` is an option of the strategy."""
        options = {
            name.removeprefix(STRATEGY_OPTION): value
            for name, value in changes.items()
            if name.startswith(STRATEGY_OPTION)
        }
        update = {k: v for k, v in changes.items() if not k.startswith(STRATEGY_OPTION)}
        update["strategy_options"] = {**self.strategy_options, **options}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _strategy_is_known(self) -> Recipe:
        make_strategy(self.strategy, self.strategy_options)
        return self
