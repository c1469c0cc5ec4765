"""The errors that a person who uses fairtune can mend; everything else is a bug and keeps its traceback."""

import re


class FairtuneError(Exception):
    """Base of all errors that the command line shows as one line."""

    exit_code = 2


class InputError(FairtuneError, ValueError):
    """Something the user gave is wrong: the message says what, where, and what to do."""


class GateRefusedError(FairtuneError):
    """A model did not pass the promotion gate, or a limit was broken."""

    exit_code = 3


def without_password(text: str) -> str:
    """Hide the passwords of all URIs in a text, for messages and logs."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]*@", r"\1:***@", text)
