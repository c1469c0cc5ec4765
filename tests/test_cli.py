from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from mlflow.projects._project_spec import load_project

from fairtune import __version__
from fairtune.cli import SECTIONS, main
from fairtune.machine import Check
from fairtune.tracking.gate import GateLimits

ROOT = Path(__file__).parents[1]
PROJECT = load_project(str(ROOT))
COMMANDS = sorted(main.commands)
LEAVES = {
    f"{name} {inner}".strip(): one
    for name, command in main.commands.items()
    for inner, one in (
        command.commands.items() if isinstance(command, click.Group) else [("", command)]
    )
}
# Commands that make no sense as a project's entry point: they print, or ask.
NOT_ENTRY_POINTS = {"image", "spaces", "pretrain", "init"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def entry_points() -> list[str]:
    return sorted(PROJECT._entry_points)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "\\b" not in result.output
    options = [p for p in main.commands[name].params if isinstance(p, click.Option)]
    assert all(option.help for option in options), f"an option of {name} has no help"


@pytest.mark.parametrize("words", sorted(LEAVES))
def test_the_help_of_a_command_has_an_example_that_parses(words: str) -> None:
    text = inspect.cleandoc(LEAVES[words].help or "")
    examples = [line for line in text.splitlines() if line.startswith("  fairtune ")]
    assert examples, f"{words} has no example"
    for example in examples:
        assert example.startswith(f"  fairtune {words} ")
        given = example.removeprefix(f"  fairtune {words}")
        LEAVES[words].make_context(words, shlex.split(given, comments=True))


def test_the_help_lists_every_command_once() -> None:
    listed = [command for commands in SECTIONS.values() for command in commands]
    assert sorted(str(command.name) for command in listed) == COMMANDS
    lines = run("--help").output.splitlines()
    for name in COMMANDS:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_options_stand_under_headings() -> None:
    text = run("promote", "--help").output
    options, limits = text.split("Limits:")
    assert "--rollback" in options
    assert "--auroc-margin" in limits


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_no_color_is_kept(
    no_color: str, coloured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("NO_COLOR", no_color)
    result = CliRunner().invoke(main, ["doctor", "--no-machine"], color=True)
    assert result.exit_code == 0, result.output
    monkeypatch.setattr("fairtune.machine.check_machine", lambda device: [Check("ok", "a", "b")])
    result = CliRunner().invoke(main, ["doctor"], color=True)
    assert ("\x1b[" in result.output) is coloured


def test_the_shell_completes_commands() -> None:
    script = CliRunner().invoke(
        main, [], prog_name="fairtune", env={"_FAIRTUNE_COMPLETE": "bash_source"}
    )
    assert "complete" in script.output
    words = {"_FAIRTUNE_COMPLETE": "bash_complete", "COMP_WORDS": "fairtune se", "COMP_CWORD": "1"}
    completed = CliRunner().invoke(main, [], prog_name="fairtune", env=words)
    assert {"plain,search", "plain,serve"} <= set(completed.output.split())


def test_every_command_is_an_entry_point_and_the_other_way_round() -> None:
    assert set(entry_points()) == (set(COMMANDS) - NOT_ENTRY_POINTS) | {"main"}


@pytest.mark.parametrize("name", entry_points())
def test_an_entry_point_calls_its_command_with_options_that_exist(
    name: str, tmp_path: Path
) -> None:
    entry = PROJECT.get_entry_point(name)
    given = {key: "3" for key, parameter in entry.parameters.items() if parameter.default is None}
    program, command, *arguments = shlex.split(entry.compute_command(given, str(tmp_path)))
    assert program == "fairtune"
    assert command == ("search" if name == "main" else name)
    context = main.commands[command].make_context(command, arguments)
    for key, parameter in entry.parameters.items():
        if parameter.default:  # the project's default is the command's
            option = {"config": "config_path"}.get(key, key)
            assert str(context.params[option]) == parameter.default


@pytest.mark.parametrize("rollback", ["true", "False"])
def test_the_project_takes_a_promotion_back(rollback: str, tmp_path: Path) -> None:
    entry = PROJECT.get_entry_point("promote")
    line = entry.compute_command({"name": "skin", "rollback": rollback}, str(tmp_path))
    context = main.commands["promote"].make_context("promote", shlex.split(line)[2:])
    assert context.params["rollback"] is (rollback == "true")
    limits = {item.name for item in dataclasses.fields(GateLimits)}
    assert limits <= set(entry.parameters)
    assert limits <= set(context.params)


def test_main_is_search() -> None:
    one, other = PROJECT.get_entry_point("main"), PROJECT.get_entry_point("search")
    assert one.command == other.command
    assert set(one.parameters) == set(other.parameters)


@pytest.mark.parametrize(
    "value", ["$(touch pwned)", "`id`", "a'b\"c", "two\nlines", "a; rm x", "*"]
)
@pytest.mark.parametrize("name", entry_points())
def test_parameters_arrive_literally(name: str, value: str, tmp_path: Path) -> None:
    entry = PROJECT.get_entry_point(name)
    command = entry.compute_command(dict.fromkeys(entry.parameters, value), str(tmp_path))
    assert shlex.split(command).count(value) == len(entry.parameters)


def test_the_version() -> None:
    assert run("--version").output == f"fairtune, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "No such command 'serch'"),
        (["search", "--confg", "x"], "--confg"),
        (["search", "--config", "no/such.yaml"], "no configuration file no/such.yaml"),
        (["search", "--overrides", "'open"], "No closing quotation"),
        (["prepare"], "name a data set ("),
        (["prepare", "ham1000"], "did you mean 'ham10000'"),
        (["prepare", "ham10000", "--source", "/no/such"], "/no/such"),
        (["promote", "x"], "--version N or --rollback"),
        (["promote", "--name", "x"], "--version N or --rollback"),
        (["promote", "--version", "1"], "Missing argument 'NAME'"),
        (["predict", "--model", "m", "no-such.png"], "no image file no-such.png"),
        (["register", "--name", "x"], "Missing argument 'RUN_ID'"),
        (["register", "one", "--run-id", "other", "--name", "x"], "give RUN_ID once"),
        (["report"], "Missing argument 'RUN_ID'"),
        (["report", "one", "--run-id", "other"], "give RUN_ID once"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fairtune: ")
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_weights_are_not_trained_for_a_folder(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "demo_pretrain.yaml")
    result = run("pretrain", "--config", config, "--output", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"fairtune: {tmp_path} is a folder: --output names the file to write\n"


def test_spaces_are_listed_with_their_bits() -> None:
    result = run("spaces", "--config", str(ROOT / "configs" / "ham10000_age.yaml"))
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "14 bits" in lines["stages_norm_conv"]
    assert "does not fit" in lines["auto_peft1"]


def test_prepare_counts_and_ends_with_json(tmp_path: Path) -> None:
    from data.official import LAYOUTS

    LAYOUTS["ham10000"](tmp_path)
    result = run("prepare", "ham10000", "--source", str(tmp_path), "--size", "16")
    assert result.exit_code == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["images"] > 0
    assert Path(last["store"]).is_dir()
    assert last["matches_official_counts"] is False


def test_doctor_finds_what_would_go_wrong(tmp_path: Path) -> None:
    from data.official import LAYOUTS

    LAYOUTS["ham10000"](tmp_path)
    config = str(ROOT / "configs" / "ham10000_age.yaml")
    result = run("doctor", "--config", config, "--source", str(tmp_path))
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["errors"] > 0
    assert result.exit_code == 3
