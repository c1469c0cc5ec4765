"""What the command line says of itself, and how much it says."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from fairtune.cli import SECTIONS, main

COMMANDS = [c for commands in SECTIONS.values() for c in commands if not isinstance(c, click.Group)]


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("fairtune")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_many_options_stand_under_several_headings(command: click.Command) -> None:
    text = CliRunner().invoke(main, [str(command.name), "--help"], terminal_width=100).stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[-1] == "Help:"
    assert text.split("\nHelp:\n")[1].split()[:2] == ["-h,", "--help"]  # not the arguments
    options = [o for o in command.params if isinstance(o, click.Option)]
    if len(options) > 7:
        assert len(headings) > 2, "many options under one heading"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_defaults_are_shown(command: click.Command) -> None:
    text = " ".join(CliRunner().invoke(main, [str(command.name), "--help"]).stdout.split())
    for option in command.params:
        if not isinstance(option, click.Option) or option.is_flag or option.multiple:
            continue
        assert (
            option.required or option.default in ("", None) or f"[default: {option.default}" in text
        )


@pytest.mark.parametrize(
    ("flags", "own", "libraries"),
    [
        (["-q"], logging.ERROR, logging.WARNING),
        ([], logging.INFO, logging.WARNING),
        (["-v"], logging.DEBUG, logging.WARNING),
        (["-vv"], logging.DEBUG, logging.INFO),
    ],
)
def test_quiet_and_verbose(flags: list[str], own: int, libraries: int) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    assert CliRunner().invoke(main, [*flags, "report"]).exit_code == 2  # but the flags are read
    assert logging.getLogger("fairtune").level == own
    assert logging.getLogger().level == libraries
