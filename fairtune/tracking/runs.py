"""Runs in MLflow: one parent a command, one nested run a trial, written by run id.

Everything goes through `MlflowClient` with an explicit run id, never through MLflow's active run:
that works alike in the driver, in a Spark worker and in a thread, and cannot attach a trial to the
wrong parent.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from fairtune.errors import FairtuneError, InputError, without_password
from fairtune.tracking.experiments import experiment_id
from fairtune.tracking.signals import signals_held
from fairtune.tracking.stores import prepare_store
from fairtune.tracking.system import system_metrics

if TYPE_CHECKING:
    from fairtune.fairness import FairnessReport

logger = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"
KIND = "fairtune.kind"
RUNG = "rung/"
"""What the metrics of trials at their rungs begin with; the epoch follows."""
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_DISK_TEXTS = tuple(os.strerror(number) for number in FULL_DISK)


@dataclass(frozen=True)
class RunLog:
    """One MLflow run. Picklable, so that a worker process can write to it."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    @cached_property
    def client(self) -> MlflowClient:
        """The client of this run's store, made once."""
        return _client(self.tracking_uri)

    def __getstate__(self) -> dict[str, str]:
        return {
            "tracking_uri": self.tracking_uri,
            "experiment_id": self.experiment_id,
            "run_id": self.run_id,
        }

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)

    def log(
        self,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        """Write all of these in one request. Metrics that are NaN are written as NaN."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(k, float(v), now, step) for k, v in (metrics or {}).items()],
            params=[Param(k, str(v)) for k, v in (params or {}).items()],
            tags=[RunTag(k, str(v)) for k, v in (tags or {}).items()],
        )

    @contextmanager
    def in_background(self) -> Iterator[Callable[..., None]]:
        """Yield a `log` that returns at once: the work goes on while the store writes, in order.

        Leaving waits until all is written. What a write met is raised by the next one, or on leaving.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="fairtune-log") as pool:
            writes: deque[Future[None]] = deque()

            def log(**what: Any) -> None:
                while writes and writes[0].done():
                    writes.popleft().result()
                writes.append(pool.submit(self.log, **what))

            yield log
            while writes:
                writes.popleft().result()

    def text(self, name: str, text: str) -> None:
        """Write a text artifact."""
        self.client.log_text(self.run_id, text, name)

    def json(self, name: str, value: Any) -> None:
        """Write a JSON artifact."""
        self.text(name, json.dumps(value, indent=2, default=str))

    def file(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a local file into the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def download(self, name: str, folder: str | Path) -> Path:
        """Fetch an artifact; raises `InputError` when the run has none of that name."""
        try:
            return Path(self.client.download_artifacts(self.run_id, name, str(folder)))
        except (*STORE_ERRORS, ValueError) as error:
            raise InputError(
                f"run {self.run_id} has no artifact {name!r}: {_reason(error)}"
            ) from None

    def read_text(self, name: str) -> str:
        """Fetch a small text artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return self.download(name, folder).read_text()

    def data(self) -> Run:
        """Read the run back."""
        return self.client.get_run(self.run_id)

    def end(self, status: str = "FINISHED", at: int | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED; `at` in milliseconds since 1970, or now."""
        self.client.set_terminated(self.run_id, status, at)

    def child(
        self,
        name: str,
        kind: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> RunLog:
        """Open a nested run under this one."""
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            tags={PARENT: self.run_id, KIND: kind, **{k: str(v) for k, v in (tags or {}).items()}},
        )
        log = RunLog(self.tracking_uri, self.experiment_id, run.info.run_id)
        if params:
            log.log(params=params)
        return log

    def sibling(self, run_id: str) -> RunLog:
        """Address another run of the same experiment."""
        return RunLog(self.tracking_uri, self.experiment_id, run_id)

    def children(self, where: str = "") -> list[Run]:
        """Read the nested runs, oldest first; `where` is a further MLflow filter."""
        condition = f"tags.`{PARENT}` = '{self.run_id}'" + (f" and {where}" if where else "")
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                condition,
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def end_children(self, status: str) -> None:
        """Close nested runs that nobody will close any more, and what runs within them."""
        for run in self.children("attributes.status = 'RUNNING'"):
            self.sibling(run.info.run_id).end_children(status)
            self.client.set_terminated(run.info.run_id, status)


def split_metrics(split: str, report: FairnessReport) -> dict[str, float]:
    """Name a report's figures as MLflow shall know them."""
    return {f"{split}/{name}": value for name, value in report.to_dict().items()}


@contextmanager
def open_run(
    kind: str, name: str, *, experiment: str, resume: str | None = None
) -> Iterator[RunLog]:
    """Open the run of a command, and close it whatever happens.

    It is the run that `mlflow run` gave (``MLFLOW_RUN_ID``), else the run to resume, else a new one.
    The run ends FINISHED; KILLED on Ctrl-C or SIGTERM; FAILED on an error, with the reason as the tag
    ``fairtune.error``. Nested runs that are still open end with it.

    Raises
    ------
    InputError
        When the store cannot be reached or written, at first or later, or a disk is full.
    """
    with ExitStack() as held:
        with store_errors():
            prepare_store(mlflow.get_tracking_uri())
            held.enter_context(signals_held())
            log = _start(kind, name, experiment, resume)
        with _closing(log, kind):
            held.close()  # a request to stop that came meanwhile takes effect here
            with system_metrics(log.tracking_uri, log.run_id):
                yield log


_OUTER: ContextVar[Mapping[str, str]] = ContextVar("outer", default=MappingProxyType({}))


@contextmanager
def runs_nested_in(log: RunLog, tags: Mapping[str, Any]) -> Iterator[None]:
    """Let the runs that `open_run` opens meanwhile be nested in this one, with these tags."""
    token = _OUTER.set({PARENT: log.run_id, **{key: str(value) for key, value in tags.items()}})
    try:
        yield
    finally:
        _OUTER.reset(token)


@contextmanager
def _closing(log: RunLog, kind: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if kind == "search":
            logger.warning("to go on where it stopped: fairtune search --resume %s …", log.run_id)
        _close(log, "KILLED")
        raise
    except BaseException as error:
        _close(log, "FAILED", error)
        if isinstance(error, FairtuneError) or not is_store_failure(error):
            raise
        logger.debug("the store failed", exc_info=True)
        raise InputError(
            f"run {log.run_id} stopped: {_reason(error)}; mend this, then go on with --resume"
        ) from error
    else:
        _close(log, "FINISHED")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn a failure of the tracking store into one line that names the store."""
    try:
        yield
    except FairtuneError:
        raise
    except STORE_ERRORS as error:
        raise _store_failed(error) from None


@contextmanager
def store_in_use() -> Iterator[None]:
    """Make sure that the store answers, and say in one line when it fails within the block."""
    with store_errors():
        prepare_store(mlflow.get_tracking_uri())
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise _store_failed(error) from error


def _store_failed(error: Exception) -> InputError:
    uri = without_password(mlflow.get_tracking_uri())
    return InputError(
        f"tracking store {uri}: {_reason(error)}; check MLFLOW_TRACKING_URI and its permissions"
    )


def is_store_failure(error: BaseException) -> bool:
    """Say whether an error comes from the tracking store or a full disk, not from the work."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(cause)
    return any(
        isinstance(link, (MlflowException, SQLAlchemyError))
        or (isinstance(link, OSError) and link.errno in FULL_DISK)
        or any(text in str(link) for text in FULL_DISK_TEXTS)  # not all libraries raise OSError
        for link in chain
    )


def existing_run(run_id: str) -> RunLog:
    """Address a run that must exist; raises `InputError` when it does not."""
    uri = mlflow.get_tracking_uri()
    try:
        prepare_store(uri)
        run = _client(uri).get_run(run_id)
    except STORE_ERRORS as error:
        raise InputError(
            f"no run {run_id!r} in {without_password(uri)}: {_reason(error)}"
        ) from None
    return RunLog(uri, run.info.experiment_id, run_id)


def log_dataset(log: RunLog, table: Any, *, name: str, digest: str, context: str) -> None:
    """Log a data set as an input of the run, with its schema and digest."""
    from mlflow.data.pandas_dataset import from_pandas
    from mlflow.entities import DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", context)]
    with warnings.catch_warnings():  # hints about inference, which has its own signature
        warnings.simplefilter("ignore", UserWarning)
        data = from_pandas(table, source=name, name=name, digest=digest[:36])
        inputs = [DatasetInput(data._to_mlflow_entity(), tags)]
    log.client.log_inputs(log.run_id, inputs)


def _client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)


def _start(kind: str, name: str, experiment: str, resume: str | None) -> RunLog:
    uri = mlflow.get_tracking_uri()
    given = os.environ.pop("MLFLOW_RUN_ID", None)
    if resume is not None:
        log = existing_run(resume)
        log.client.update_run(resume, status="RUNNING")
        if given:  # the run that `mlflow run` made for this command only points to the resumed one
            log.client.set_tag(given, "fairtune.resumes", resume)
        return log
    if given:
        log = existing_run(given)
        log.log(tags={KIND: kind})
        log.client.update_run(given, name=name)
        return log
    identifier = experiment_id(experiment)
    tags = {KIND: kind, **_provenance(), **_OUTER.get()}
    run = _client(uri).create_run(identifier, run_name=name, tags=tags)
    return RunLog(uri, identifier, run.info.run_id)


def _provenance() -> dict[str, str]:
    from mlflow.tracking.context.registry import resolve_tags

    tags: dict[str, str] = resolve_tags()
    return tags


def _close(log: RunLog, status: str, error: BaseException | None = None) -> None:
    try:
        with signals_held():
            log.end_children("FAILED" if status == "FINISHED" else status)
            if error is not None:
                log.log(tags={"fairtune.error": one_line(error)})
            log.end(status)
    except STORE_ERRORS as failure:
        logger.warning("run %s could not be closed as %s: %s", log.run_id, status, _reason(failure))


def one_line(error: BaseException, limit: int = 500) -> str:
    """Return an error's message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _reason(error: BaseException) -> str:
    text = getattr(error, "message", None) or str(error)
    lines: Sequence[str] = [line for line in str(text).splitlines() if line.strip()]
    return without_password(lines[0].strip()[:300]) if lines else type(error).__name__
