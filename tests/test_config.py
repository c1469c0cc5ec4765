from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fairtune.config import Config, differing_keys, load_config
from fairtune.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if path.parent.name != "compare"]  # these compare several
MINIMAL = {
    "data": {"name": "synthetic", "attributes": ["sex"]},
    "model": {"architecture": "vit_tiny_patch16_224", "weights": "none"},
}


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = load_config(path)
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_opens_with_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert path.name in first


def test_overrides_are_typed_and_nested(minimal: Path) -> None:
    config = load_config(
        minimal,
        [
            "train.epochs=3",
            "train.learning_rate=1e-4",
            "search.pruning.rule=halving",
            "search.pruning.rungs=[1, 2]",
            "register.name=null",
            "data.attributes=[sex, age]",
        ],
    )
    assert config.train.epochs == 3
    assert config.train.learning_rate == 1e-4
    assert config.search.pruning.rungs == (1, 2)
    assert config.register_as.name is None
    assert config.data.attributes == ("sex", "age")


def test_an_override_that_looks_like_a_date_and_is_none_is_a_text(minimal: Path) -> None:
    assert load_config(minimal, ["register.name=2024-13-45"]).register_as.name == "2024-13-45"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serch.trials=3", "unknown key 'serch'; did you mean 'search'"),
        ("search.trial=3", "unknown key 'search.trial'; did you mean 'trials'"),
        ("search.final.seed=3", "did you mean 'seeds'"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, not 0"),
        ("train.epochs=many", "train.epochs"),
        ("search.algorithm=grid", "search.algorithm"),
        ("search.learning_rate.low=1", "low must be below high"),
        ("train.augment.crop_scale=[1, 0.5]", "crop_scale must be"),
        ("train.epochs", "is not key=value"),
        ("=3", "is not key=value"),
        ("seed.inner=3", "seed is a value, not a section"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_where(
    minimal: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_config(minimal, ["seed=1", override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rung_beyond_the_epochs_is_refused(minimal: Path) -> None:
    with pytest.raises(InputError, match=r"rung 5 .* train.epochs=5"):
        load_config(minimal, ["search.pruning.rule=median", "search.pruning.rungs=[1, 5]"])


@pytest.mark.parametrize("changes", [["train.epochs=1"], ["train.epochs=6", "train.judge_every=6"]])
def test_pruning_needs_an_epoch_before_the_last(minimal: Path, changes: list[str]) -> None:
    with pytest.raises(InputError, match="no epoch is judged before the last"):
        load_config(minimal, ["search.pruning.rule=halving", *changes])


def test_a_missing_file_names_the_nearest(minimal: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean .*minimal\.yaml"):
        load_config(minimal.with_name("minimal.yml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("seed: 0\nname: 2024-13-45", "month must be in 1..12; quote it if it is a text"),
        ("seed: 0\nname: 2024-13-45", "line 2, column 7"),
        ("- 1", "expected a mapping"),
        ("", "expected a mapping"),
        ("data: {name: x, attributes: []}\nmodel: {architecture: y}", "data.attributes"),
        ("model: {architecture: y}", "'data' is missing"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8-sig")
    assert load_config(path).data.name == "synthetic"


def test_differing_keys_are_dotted(minimal: Path) -> None:
    one = load_config(minimal)
    other = load_config(minimal, ["search.trials=3", "data.options.label=x"])
    assert differing_keys(one, one) == []
    assert differing_keys(one, other) == ["data.options", "data.options.label", "search.trials"]


def test_a_configuration_is_frozen(minimal: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(minimal).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("register.name=a/b", "must be non-empty and without"),
        ("register.alias=latest", "neither latest nor v1"),
        ("register.alias=V2", "neither latest nor v1"),
        ("register.alias=a b", "must be letters"),
    ],
)
def test_what_the_registry_would_refuse_in_the_end_is_refused_at_once(
    override: str, says: str
) -> None:
    config = next((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    with pytest.raises(InputError, match=says):
        load_config(config, [override])


def test_an_option_of_the_strategy_can_be_searched(minimal: Path) -> None:
    dro = "train.strategy=group_dro"
    config = load_config(
        minimal, [dro, "search.extra={strategy.step_size: {low: 0.01, high: 0.1}}"]
    )
    changed = config.train.changed({"strategy.step_size": 0.05, "weight_decay": 0.2})
    assert changed.strategy_options == {"step_size": 0.05}
    assert (changed.weight_decay, changed.epochs) == (0.2, config.train.epochs)
    with pytest.raises(InputError, match="unknown option of strategy 'erm'|has no options"):
        load_config(minimal, ["search.extra={strategy.step_size: {low: 0.01, high: 0.1}}"])
    with pytest.raises(InputError, match="step_size: .*greater than 0"):
        load_config(minimal, [dro, "search.extra={strategy.step_size: {low: -1, high: 0.1}}"])
    with pytest.raises(InputError, match="unknown dimension 'epochs'"):
        load_config(minimal, ["search.extra={epochs: {low: 1, high: 5}}"])


def test_a_rung_is_judged(minimal: Path) -> None:
    rungs = ["search.pruning={rule: median, rungs: [1, 3]}", "train.epochs=6"]
    load_config(minimal, rungs)
    with pytest.raises(InputError, match="epoch 1 is not judged with train.judge_every=3"):
        load_config(minimal, [*rungs, "train.judge_every=3"])
