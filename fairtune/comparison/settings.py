"""What is compared on what, as one frozen value from a YAML file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fairtune.comparison.methods import FULL, SEARCHED, Method, method
from fairtune.config import (
    Config,
    load_config,
    parse_config,
    read_mapping,
    with_overrides,
    with_values,
)
from fairtune.data import DATASETS
from fairtune.errors import InputError
from fairtune.fairness import get_objective
from fairtune.search.settings import WORKER_KEYS


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Section):
    """A data set with its sensitive attributes, and the model for it."""

    name: str = Field(min_length=1, description="What tables call it.")
    config: dict[str, Any] = Field(
        description="A whole configuration; in the file, the path of one, from the file's folder."
    )
    source: str | None = Field(None, description="Folder of the data set; else `--source`.")
    seed_keys: tuple[str, ...] = Field(
        (),
        description="Keys that take the seed as well: `data.options.seed` of a data set that is generated "
        "draws new people.",
    )

    @model_validator(mode="after")
    def _seeds_draw_new_people(self) -> Task:
        for key in self.seed_keys:
            if key != "data.options.seed" or not _is_generated(self.config["data"]["name"]):
                raise ValueError(
                    f"seed_keys: {key} of data set {self.config['data']['name']!r} draws no new people: "
                    "seeds would share them, and no test here allows for that"
                )
        return self

    @property
    def tested_folds(self) -> tuple[int | None, ...]:
        """The folds that are tested for each seed; see `DataConfig.tested_folds`."""
        return parse_config(self.config, f"task {self.name!r}").data.tested_folds


def _is_generated(data_set: str) -> bool:
    """Say whether a data set is made from its options, without a source; a seed then makes other people."""
    source, *_ = inspect.signature(DATASETS[data_set]).parameters.values()
    return source.default is None


class Comparison(_Section):
    """Methods by seeds by tasks, and the budget that each method has."""

    name: str = Field(min_length=1, description="What the parent run is called.")
    tasks: tuple[Task, ...] = Field(min_length=1)
    methods: tuple[Method, ...] = Field(min_length=2)
    seeds: tuple[int, ...] = Field(min_length=1, description="One final model a method for each.")
    trials: int = Field(8, ge=1, description="Hyperparameter trials of each method and seed.")
    candidate: str = Field(SEARCHED, description="The method of which something is claimed.")
    references: tuple[str, ...] = Field(
        (FULL,), description="The methods that the others are compared with, the first foremost."
    )
    margin: float = Field(0.01, ge=0, description="Loss of overall AUROC that does not matter.")
    resamples: int = Field(2000, ge=100, description="Resamples of the test patients.")

    @field_validator("tasks", "methods")
    @classmethod
    def _named_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [value.name for value in values]
        if len(set(names)) < len(names):
            raise ValueError(f"a name comes twice in {', '.join(names)}")
        return values

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must differ and be 0 or more")
        return seeds

    @model_validator(mode="after")
    def _methods_are_there(self) -> Comparison:
        names = [m.name for m in self.methods]
        wanted = [("candidate", self.candidate), *(("references", r) for r in self.references)]
        wanted += [(f"method {m.name}", m.size_of) for m in self.methods if m.size_of]
        for where, name in wanted:
            if name not in names:
                raise ValueError(f"{where}: no method {name!r} in {', '.join(names)}")
        if set(self.references) == {self.candidate}:
            raise ValueError(f"references: {self.candidate!r} is the candidate; name another")
        fixed = {m.name for m in self.methods if m.space is not None}
        without = {m.name for m in self.methods if m.best_of or m.size_of}
        for m in self.methods:
            if m.size_of in without:
                raise ValueError(
                    f"method {m.name}: {m.size_of} has no mask of its own; size_of names one that has"
                )
            if m.match == "parts" and m.size_of in fixed:
                raise ValueError(
                    f"method {m.name}: {m.size_of} has no parts of the searched space; set match to values"
                )
        return self

    @property
    def trained(self) -> tuple[Method, ...]:
        """The methods that train, those whose mask hangs on another's last."""
        own = [m for m in self.methods if not m.best_of]
        return tuple(sorted(own, key=lambda m: m.size_of is not None))

    def choices(self, chooser: Method) -> tuple[str, ...]:
        """Return the methods in this comparison among which a `best_of` chooses."""
        return tuple(m.name for m in self.methods if m.name in chooser.best_of)

    def changed(self, overrides: Iterable[str]) -> Comparison:
        """Return the comparison with ``key=value`` overrides in the configuration of every task."""
        return self._with_configs(lambda config: with_overrides(config, overrides))

    def apart_from_workers(self) -> Comparison:
        """Return the comparison without what says where its units run, to be compared with another.

        Keys that a configuration does not have, as it is of an earlier release, have their defaults.
        """
        workers = dict.fromkeys(WORKER_KEYS)

        def whole(config: dict[str, Any]) -> dict[str, Any]:
            values = parse_config(config, "configuration").model_dump(mode="json", by_alias=True)
            return with_values(values, workers)

        return self._with_configs(whole)

    def _with_configs(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Comparison:
        tasks = [task.model_copy(update={"config": change(task.config)}) for task in self.tasks]
        return self.model_copy(update={"tasks": tuple(tasks)})

    def to_yaml(self) -> str:
        """Return YAML that `parse_comparison` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def fine_tunes(self, how: Method) -> int:
        """Return how many fine-tunes of a seed a method's choice rests on."""
        behind = [m for m in self.methods if m.name in self.choices(how)] if how.best_of else [how]
        return sum(m.fine_tunes(self.trials) for m in behind)

    def unit_config(self, task: Task, how: Method, seed: int, fold: int | None = None) -> Config:
        """Return the configuration under which a method runs with one seed."""
        values: dict[str, Any] = {
            "seed": seed,
            **dict.fromkeys(task.seed_keys, seed),
            "data.fold": fold,
            "register": {},
            "search.trials": how.trials or self.trials,
            "search.final.candidates": how.candidates,
            "search.final.seeds": how.repeats,
            "search.extra": how.extra,
            **{f"train.{key}": value for key, value in how.train.items()},
            "train.strategy": how.strategy,
            "train.strategy_options": how.strategy_options,
        }
        if how.space is not None:
            values["search.space"] = how.space
        raw = with_values(task.config, values)
        return parse_config(raw, f"task {task.name!r}, method {how.name!r}")


def load_comparison(path: str | Path, overrides: tuple[str, ...] = ()) -> Comparison:
    """Read a comparison from YAML; `overrides` change the configuration of every task.

    Each task's ``config`` is a path from the file's folder, with ``overrides`` of its own.

    Raises
    ------
    InputError
        One line: the file, the key, what is wrong.
    """
    path = Path(path)
    raw = read_mapping(path)
    if not isinstance(raw.get("tasks"), list) or not isinstance(raw.get("methods"), list):
        raise InputError(f"{path}: a comparison needs `tasks` and `methods`, two lists")
    for task in raw["tasks"]:
        if not isinstance(task, dict) or not isinstance(task.get("config"), str):
            raise InputError(f"{path}: each task needs `config`, the path of a configuration")
        where = f"{path}, task {task.get('name')!r}"
        own = task.pop("overrides", None) or {}
        if not isinstance(own, dict):
            raise InputError(f"{where}: overrides are a mapping, such as {{train.epochs: 5}}")
        config = load_config(os.path.normpath(path.parent / task["config"]))
        try:
            values = with_values(config.model_dump(mode="json", by_alias=True), own)
        except InputError as error:
            raise InputError(f"{where}: overrides: {error}") from None
        task["config"] = with_overrides(values, overrides)  # the command line has the last word
        parse_config(task["config"], where)
    for one in raw["methods"]:
        if not isinstance(one, str | dict):
            raise InputError(f"{path}: a method is a name or a mapping, not {one!r}")
    raw["methods"] = [method(one).model_dump() for one in raw["methods"]]
    return parse_comparison(raw, str(path))


def parse_comparison(raw: dict[str, Any], where: str) -> Comparison:
    """Check a plain dictionary; `where` is named in the error."""
    try:
        comparison = Comparison.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {key + ': ' if key else ''}{message}") from None
    for task in comparison.tasks:
        alike: dict[tuple[str, str | None, str], str] = {}
        for how in comparison.trained:
            config = comparison.unit_config(task, how, comparison.seeds[0])
            get_objective(config.search.objective)
            twin = alike.setdefault((config.to_yaml(), how.size_of, how.match), how.name)
            if twin != how.name:
                has = ", ".join(f"train.{key}={value}" for key, value in how.train.items())
                why = f": its configuration has {has} already" if has else ""
                raise InputError(
                    f"{where}: {twin!r} and {how.name!r} are one method on task {task.name!r}{why}"
                )
    return comparison
