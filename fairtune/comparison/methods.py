"""What is compared: masks without a search, the search, and strategies, each a method by name.

A method is a change of a configuration: what the mask's space is, how it trains, and what of it is
searched. All of them then run through the same search loop with the same number of trials. A name
joins parts by a plus: a mask, a strategy, a recipe, as in ``searched+group_dro+unweighted``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fairtune.errors import InputError
from fairtune.peft import get_space
from fairtune.registry import unknown_name
from fairtune.training import STRATEGIES, make_strategy

SEARCHED = "searched"
FULL = "full"
ERM = "erm"
PLUS = "+"

# The option of each strategy that its paper tunes or leaves open, and the range that is searched here.
TUNED: dict[str, dict[str, Any]] = {
    "group_dro": {"step_size": {"low": 1e-3, "high": 1e-1, "log": True}},
    "sam": {"rho": {"low": 0.01, "high": 0.5, "log": True}},
    "gsam": {"rho": {"low": 0.02, "high": 0.5, "log": True}},
    "swa": {"learning_rate": {"low": 0.1, "high": 1.0, "log": True}},
    "swad": {"tolerance": {"low": 1.05, "high": 1.5}},
    "ema": {"decay": {"low": 0.9, "high": 0.9999}},
    "dann": {"weight": {"low": 0.01, "high": 1.0, "log": True}},
    "laftr": {"weight": {"low": 0.01, "high": 2.0, "log": True}},
    "cfair": {"weight": {"low": 0.01, "high": 1.0, "log": True}},
    "lnl": {"weight": {"low": 0.01, "high": 1.0, "log": True}},
    "odr": {"entropy_weight": {"low": 0.01, "high": 1.0, "log": True}},
    "end": {"disentangle": {"low": 0.01, "high": 1.0, "log": True}},
    "fscl": {"temperature": {"low": 0.05, "high": 0.5, "log": True}},
    "fairprune": {"share": {"low": 0.02, "high": 0.5, "log": True}},
    "dfr": {"strength": {"low": 1e-3, "high": 1.0, "log": True}},
}
# The strategies that have options and search none of them, and why.
UNTUNED = {
    "group_resampling": "`cells` says what is balanced: with the other value it is another method",
    "group_reweighting": "`cells` says what is balanced: with the other value it is another method",
}
# What else of a recipe makes a method of its own, by the name that follows a plus.
RECIPES: dict[str, dict[str, Any]] = {
    "class_weighting": {"class_weights": "balanced"},
    "unweighted": {"class_weights": "none"},
}


class Method(BaseModel):
    """One way to fine-tune."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="What tables call it.")
    space: str | None = Field(
        None, description="The mask's space; null = the configuration's, whose bits are searched."
    )
    size_of: str | None = Field(
        None,
        description="Another method: the mask is drawn at random, of the size of that one's mask.",
    )
    match: Literal["values", "parts"] = Field(
        "values",
        description="What of `size_of` is alike: trained values, or parts (bits that are on). Where a few "
        "parts have most of the values, masks with as many values are nearly the same mask.",
    )
    best_of: tuple[str, ...] = Field(
        (), description="Takes the one of these methods that is best on validation; trains nothing."
    )
    strategy: str = Field(ERM, description="How to train.")
    strategy_options: dict[str, Any] = Field({}, description="The strategy's own options.")
    train: dict[str, Any] = Field(
        {}, description="Other keys of `train` that it sets: `{class_weights: balanced}`."
    )
    extra: dict[str, Any] = Field(
        {}, description="Searched beside the learning rate, as under `search.extra`."
    )
    trials: int | None = Field(
        None, ge=1, description="Trials of its own; null = as many as the comparison gives each."
    )
    candidates: int = Field(
        1, ge=1, description="Best trials that are fine-tuned again before one is chosen; 1 = none."
    )
    repeats: int = Field(3, ge=1, description="Fine-tunes of each of several candidates.")

    @model_validator(mode="after")
    def _is_one_thing(self) -> Method:
        if sum((self.space is not None, self.size_of is not None, bool(self.best_of))) > 1:
            raise ValueError("space, size_of and best_of exclude each other")
        if self.best_of and (self.trials is not None or self.candidates > 1):
            raise ValueError("best_of trains nothing: it takes no trials and no candidates")
        if self.best_of and (self.strategy != ERM or self.train):
            raise ValueError("best_of trains nothing: it takes no strategy and no recipe")
        if self.match != "values" and self.size_of is None:
            raise ValueError("match goes with size_of")
        if twice := sorted({"strategy", "strategy_options"} & set(self.train)):
            raise ValueError(f"{twice[0]} stands beside train, not in it")
        if self.candidates > 1 and (self.space is not None or self.size_of is not None):
            raise ValueError("candidates are masks of a search: a method with one mask has none")
        make_strategy(self.strategy, self.strategy_options)
        if self.space is not None:
            get_space(self.space)
        return self

    def fine_tunes(self, trials: int) -> int:
        """Return how many fine-tunes its choice rests on, where each method has `trials`."""
        again = self.candidates * self.repeats if self.candidates > 1 else 0
        return (self.trials or trials) + again


_MASKS = {
    FULL: "fullft",
    "scratch": "train_from_scratch",
    "linear": "linear_readout",
    "bitfit": "bitfit",
    "norms": "tune_layernorm",
    "attention": "tune_attention",
    "last_blocks": "last_blocks",
    "lora": "lora:8",
}


def known_methods() -> dict[str, Method]:
    """Return the methods that have a name of their own, in the order of tables.

    ``searched+<strategy>``, and any other mask with a strategy, a recipe or both, are known to
    `method` as well.
    """
    found = {name: Method(name=name, space=space) for name, space in _MASKS.items()}
    found["random"] = Method(name="random", size_of=SEARCHED)
    found["best_fixed"] = Method(name="best_fixed", best_of=tuple(_MASKS))
    for name in (*RECIPES, *sorted(set(STRATEGIES) - {ERM})):
        found[name] = _with_part(found[FULL], name, name)
    found[SEARCHED] = Method(name=SEARCHED)
    return found


def method(named: str | dict[str, Any]) -> Method:
    """Return a method by name, or made from a mapping of its fields.

    Raises
    ------
    InputError
        An unknown name (with the nearest), or parts or fields that make no method.
    """
    if isinstance(named, str):
        known = known_methods()
        first, *parts = named.split(PLUS)
        if first not in known:
            raise unknown_name("method", named, (*known, f"{SEARCHED}{PLUS}<strategy>"))
        found = known[first]
        for part in parts:
            found = _with_part(found, named, part)
        return found
    fields = dict(named)
    if isinstance(fields.get("like"), str):
        fields = {**method(fields.pop("like")).model_dump(), **fields}
    return _made(fields)


def _with_part(base: Method, name: str, part: str) -> Method:
    """Add a strategy or a recipe to a method that has none yet."""
    if part in RECIPES:
        if set(RECIPES[part]) & set(base.train):
            raise InputError(f"method {name!r}: {' and '.join(RECIPES)} exclude each other")
        change: dict[str, Any] = {"train": {**base.train, **RECIPES[part]}}
    elif part in STRATEGIES:
        if base.strategy != ERM:
            raise InputError(f"method {name!r} has two strategies, {base.strategy} and {part}")
        tuned = TUNED.get(part, {})
        extra = {f"strategy.{option}": what for option, what in tuned.items()}
        change = {"strategy": part, "extra": extra}
    else:
        raise unknown_name(f"part of method {name!r}:", part, (*STRATEGIES, *RECIPES))
    return _made({**base.model_dump(), **change, "name": name})


def _made(fields: dict[str, Any]) -> Method:
    try:
        return Method.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "method"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"method {fields.get('name', '?')!r}: {where}: {message}") from None
