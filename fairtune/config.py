"""The configuration: typed, frozen, from YAML and ``-o key=value``; unknown keys are errors."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml.constructor import ConstructorError

from fairtune.errors import InputError
from fairtune.search.settings import SearchSettings
from fairtune.training.recipe import STRATEGY_OPTION, Recipe
from fairtune.training.strategies import make_strategy


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Which images, and which sensitive attributes."""

    name: str = Field(description="Name of a data set; `folder` is your own images.")
    options: dict[str, Any] = Field({}, description="The data set's own options.")
    attributes: tuple[str, ...] = Field(
        min_length=1,
        description="Sensitive attributes to judge by; `a*b` is the intersection of two.",
    )
    image_size: int = Field(224, ge=8, description="Side of the images the model sees, in pixels.")
    store_size: int | None = Field(
        None,
        ge=8,
        description="Side of the stored images; larger than `image_size` keeps detail for crops.",
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="What an unreadable image does: stop, or be left out."
    )
    example_images: int = Field(
        0,
        ge=0,
        le=8,
        description="Training images of each class in each group to show in the report. They go into "
        "the tracking store: only where the licence and the people's consent allow it.",
    )
    folds: int | None = Field(
        None,
        ge=3,
        description="Cross-testing in this many folds by patient instead of the data set's own splits.",
    )
    fold: int | None = Field(
        None, ge=0, description="Which of the folds is tested, if one alone; null = each in turn."
    )
    fold_seed: int = Field(0, ge=0, description="Of the division into folds.")

    @model_validator(mode="after")
    def _fold_exists(self) -> DataConfig:
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            raise ValueError(f"fold {self.fold} needs folds above it, not {self.folds}")
        return self

    @property
    def tested_folds(self) -> tuple[int | None, ...]:
        """The folds that are tested one after the other; None alone is the data set's own split."""
        if self.folds is None or self.fold is not None:
            return (self.fold,)
        return tuple(range(self.folds))


class ModelConfig(_Section):
    """Which model, and where its weights come from."""

    architecture: str = Field(description="Any timm model that is a ViT or has stages.")
    options: dict[str, Any] = Field({}, description="Keyword arguments of timm.create_model.")
    weights: str = Field(
        "pretrained",
        description="`pretrained` (the hub), `demo`, `efficientnet_lite0`, `none` or a .safetensors file.",
    )


class CardConfig(_Section):
    """What no run knows of a model: texts of its model card."""

    intended_use: str = Field("", description="What the model is for; a cautious text by default.")
    out_of_scope: str = Field("", description="What it is not for; a cautious text by default.")
    data: str = Field("", description="Where the images are from, who is in them.")
    contact: str = Field("", description="Whom to ask.")
    licence: str = Field("", description="On what terms the model may be used.")


class RegisterConfig(_Section):
    """Where the winner goes."""

    name: str | None = Field(
        None, description="Name of the registered model; null = do not register."
    )
    alias: str = Field(
        "champion",
        description="Alias that the new version takes; `champion` only as the first version of its "
        "name, as later ones pass the gate of `fairtune promote`.",
    )
    card: CardConfig = Field(CardConfig(), description="Texts of the model card.")

    @model_validator(mode="after")
    def _registry_takes_them(self) -> RegisterConfig:
        # The registry itself would refuse them, but only when the whole search is done.
        if self.name is not None and (not self.name.strip() or set(self.name) & set("/:'\"\\")):
            raise ValueError(f"name {self.name!r} must be non-empty and without / : ' \" \\")
        if not re.fullmatch(r"[\w-]+", self.alias) or re.fullmatch(
            r"latest|v\d+", self.alias, re.I
        ):
            raise ValueError(
                f"alias {self.alias!r} must be letters, digits, _ and -, and neither latest nor v1"
            )
        return self


class Config(_Section):
    """Everything that a search depends on."""

    seed: int = Field(0, ge=0, description="Base of every random draw.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    data: DataConfig
    model: ModelConfig
    train: Recipe = Recipe()
    search: SearchSettings = SearchSettings()
    register_as: RegisterConfig = Field(RegisterConfig(), alias="register")

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which weak trials are stopped; none without pruning."""
        return self.search.pruning.rungs_within(self.train.epochs, self.train.judge_every)

    @model_validator(mode="after")
    def _rungs_fit(self) -> Config:
        every, rungs = self.train.judge_every, self.rungs
        if self.search.pruning.rule != "none" and not rungs:
            raise ValueError(
                f"search.pruning: with train.epochs={self.train.epochs} and train.judge_every={every} no "
                "epoch is judged before the last; train longer, judge more often or set rule: none"
            )
        unseen = [rung for rung in rungs if rung % every]
        if unseen:
            raise ValueError(
                f"search.pruning.rungs: epoch {unseen[0]} is not judged with train.judge_every={every}"
            )
        beyond = [rung for rung in rungs if rung >= self.train.epochs]
        if beyond:
            raise ValueError(
                f"search.pruning.rungs: rung {beyond[0]} is not before the last of "
                f"train.epochs={self.train.epochs}; lower the rung or train longer"
            )
        return self

    @model_validator(mode="after")
    def _strategy_takes_what_is_searched(self) -> Config:
        for name, what in self.search.extra.items():
            if name.startswith(STRATEGY_OPTION):
                option = name.removeprefix(STRATEGY_OPTION)
                for value in what.ends:
                    given = {**self.train.strategy_options, option: value}
                    make_strategy(self.train.strategy, given)
        return self

    def to_yaml(self) -> str:
        """Return the configuration as YAML that `load_config` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply ``key.inner=value`` overrides.

    Raises
    ------
    InputError
        One line that names the file, the key, what is wrong, and the nearest known key.
    """
    return parse_config(with_overrides(read_mapping(path), overrides), str(path))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    InputError
        One line: no such file (with its neighbours), not UTF-8, not YAML, not a mapping.
    """
    path = Path(path)
    try:
        raw = _read_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"no configuration file {path}{_neighbours(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


class _Loader(yaml.SafeLoader):
    """Reads YAML; says where a value stands that cannot be made, like the date 2024-13-45."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            problem = f"{error}; quote it if it is a text"
            raise ConstructorError(None, None, problem, node.start_mark) from None


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a plain dictionary; `where` is named in the error."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error)}") from None


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a plain configuration with other values under dotted keys."""
    changed = copy.deepcopy(dict(raw))
    for key, value in values.items():
        _put(changed, str(key), value)
    return changed


def with_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a plain configuration with ``key.inner=value`` overrides applied."""
    changed = copy.deepcopy(dict(raw))
    for override in overrides:
        _apply(changed, override)
    return changed


def differing_keys(a: Config, b: Config) -> list[str]:
    """Name the dotted keys in which two configurations differ."""
    flat_a, flat_b = (
        _flat(a.model_dump(mode="json", by_alias=True)),
        _flat(b.model_dump(mode="json", by_alias=True)),
    )
    return sorted(k for k in flat_a.keys() | flat_b.keys() if flat_a.get(k) != flat_b.get(k))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override {override!r} is not key=value, like train.epochs=3")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):
        value = _number(value)
    try:
        _put(raw, key.strip(), value)
    except InputError as error:
        raise InputError(f"override {override!r}: {error}") from None


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set what stands under a dotted key, in place."""
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{parent} is a value, not a section")
        section = inner
    section[last] = value


def _number(text: str) -> Any:
    """Read 1e-3 as a number: YAML 1.1 takes it for a string, as it has no dot."""
    try:
        return float(text)
    except ValueError:
        return text


def _neighbours(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    known = sorted(str(p) for p in folder.glob("*.yaml"))
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5)
    return (
        f"; did you mean {near[0]}?"
        if near
        else (
            f" (there are: {', '.join(known)})"
            if known
            else "; give --config FILE, which `fairtune init` writes for your own images"
        )
    )


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {location!r}{hint} (known: {', '.join(known)}){more}"
    if first["type"] == "missing":
        return f"key {location!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{location + ': ' if location else ''}{message}{given}{more}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        for name, info in model.model_fields.items():
            if part in (name, info.alias) and isinstance(info.annotation, type):
                model = info.annotation
                break
    return sorted(info.alias or name for name, info in model.model_fields.items())
