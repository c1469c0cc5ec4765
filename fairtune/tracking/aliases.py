"""Aliases of a registered model, moved by one process at a time.

MLflow sets an alias without asking what it was, so two promotions at once would both believe to have
won. The lock is a registered model of a reserved name: a store of any kind, on any machine, makes a
name once, and refuses the second. What holds the lock is short; a lock older than `STALE_SECONDS`
belongs to a process that died, and is taken over.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fairtune.errors import InputError, without_password
from fairtune.tracking.runs import STORE_ERRORS, one_line
from fairtune.tracking.signals import signals_held

logger = logging.getLogger(__name__)

CHAMPION = "champion"
PREVIOUS = "previous"
LOCK_SUFFIX = "--alias-lock"
STALE_SECONDS = 60.0
WAIT_SECONDS = 90.0
_OWNER = "fairtune.owner"


class ChampionChangedError(Exception):
    """The champion is not the one that was compared with; `found` is who it is now."""

    def __init__(self, found: str | None) -> None:
        super().__init__(f"the champion is version {found} by now")
        self.found = found


def alias_version(client: MlflowClient, name: str, alias: str) -> str | None:
    """Return the version an alias points to, or None; raises `InputError` for an unknown name."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = sorted(found.name for found in client.search_registered_models())
        names = ", ".join(item for item in known if not item.endswith(LOCK_SUFFIX)) or "none"
        where = without_password(mlflow.get_registry_uri())
        raise InputError(f"no registered model {name!r} in {where} (known: {names})") from error
    version = aliases.get(alias)
    return None if version is None else str(version)


def move_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point `alias` to `version`; a champion that gives way stays reachable as `previous`."""
    with alias_lock(client, name):
        _move(client, name, alias, version, alias_version(client, name, alias))


def replace_champion(client: MlflowClient, name: str, expected: str | None, version: str) -> None:
    """Make `version` the champion if `expected` still is; raises `ChampionChangedError` if not."""
    with alias_lock(client, name):
        found = alias_version(client, name, CHAMPION)
        if found != expected:
            raise ChampionChangedError(found)
        _move(client, name, CHAMPION, version, found)


@contextmanager
def alias_lock(client: MlflowClient, name: str) -> Iterator[None]:
    """Hold the lock of a registered model's aliases for the length of the block.

    Ctrl-C and SIGTERM wait until it is over. A lock that cannot be given back grows stale.

    Raises
    ------
    InputError
        Another process has held it for longer than `WAIT_SECONDS`.
    """
    lock, owner = f"{name}{LOCK_SUFFIX}", uuid.uuid4().hex
    deadline = time.monotonic() + WAIT_SECONDS
    while not _acquire(client, lock, owner):
        if time.monotonic() > deadline:
            raise InputError(
                f"another promotion of {name!r} is under way; when it is not, delete {lock!r}"
            )
        time.sleep(0.2)
    with signals_held():
        try:
            yield
        finally:
            _release(client, lock, owner)


def _acquire(client: MlflowClient, lock: str, owner: str) -> bool:
    try:
        client.create_registered_model(
            lock, tags={_OWNER: owner}, description="Held while aliases of a model are moved."
        )
        return True
    except MlflowException as error:
        # The second: MLflow was refused the name, and looked for its holder, who had let go by then.
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
    holder, age = _owner(client, lock)
    if holder is not None and age > STALE_SECONDS:
        client.delete_registered_model(lock)
    return False


def _release(client: MlflowClient, lock: str, owner: str) -> None:
    """Give the lock back; a failure is a warning, as what was done under the lock is done."""
    try:
        if _owner(client, lock)[0] == owner:
            client.delete_registered_model(lock)
    except STORE_ERRORS as error:
        logger.warning("%s is left behind for %.0f s: %s", lock, STALE_SECONDS, one_line(error))


def _owner(client: MlflowClient, lock: str) -> tuple[str | None, float]:
    """Return who holds the lock (None: nobody any more) and for how many seconds."""
    try:
        found = client.get_registered_model(lock)
    except MlflowException:
        return None, 0.0
    return found.tags.get(_OWNER, ""), time.time() - (found.creation_timestamp or 0) / 1000


def _move(client: MlflowClient, name: str, alias: str, version: str, holder: str | None) -> None:
    """Point an alias to a version: wholly, or after a failure not at all."""
    if holder == version:
        return
    if alias != CHAMPION or holder is None:
        client.set_registered_model_alias(name, alias, version)
        return
    way_back = alias_version(client, name, PREVIOUS)
    try:
        # First the way back, so that no moment is without one.
        client.set_registered_model_alias(name, PREVIOUS, holder)
        client.set_registered_model_alias(name, CHAMPION, version)
    except BaseException:
        _put_back(client, name, holder, way_back)
        raise


def _put_back(client: MlflowClient, name: str, champion: str, way_back: str | None) -> None:
    try:
        client.set_registered_model_alias(name, CHAMPION, champion)
        if way_back is None:
            client.delete_registered_model_alias(name, PREVIOUS)
        else:
            client.set_registered_model_alias(name, PREVIOUS, way_back)
    except STORE_ERRORS:  # the first error is the one that matters
        logger.warning("could not put the aliases of %s back", name, exc_info=True)
