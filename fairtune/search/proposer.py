"""Who proposes the next trial: given points first, then a hyperopt algorithm, never twice the same.

A `Proposer` is what hyperopt calls an ``algo``: a function of (new ids, domain, trials, seed). Two of
its habits make a resumed search propose what an uninterrupted one would have: it ignores the seed that
`fmin` hands over (a stream that restarts with the process) and derives its own from the trial's number;
and a proposal depends on nothing but the trials before it.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from hyperopt import JOB_STATE_DONE, Trials, anneal, rand, tpe
from hyperopt.base import Domain, trials_from_docs
from hyperopt.utils import coarse_utcnow

from fairtune.errors import InputError
from fairtune.search.point import Point, SearchSpace
from fairtune.seeding import seed as named_seed

ATTEMPTS = 50
REMEMBERED_BEST = 25  # TPE never takes more for the good ones
REMEMBERED_LATEST = 100
GAMMA = 0.25  # TPE's: of N trials the best GAMMA * sqrt(N) are the good ones
Suggest = Callable[..., list[dict[str, Any]]]


def algorithm(name: str, startup_trials: int) -> Suggest:
    """Return hyperopt's suggest function of this name."""
    suggest: Suggest
    if name == "tpe":
        return partial(_tpe, startup_trials=startup_trials)
    if name == "atpe":
        if importlib.util.find_spec("lightgbm") is None:  # hyperopt itself looks for it too late
            raise InputError("search.algorithm=atpe needs lightgbm: pip install 'fairtune[atpe]'")
        return _adaptive_tpe
    suggest = {"rand": rand.suggest, "anneal": anneal.suggest}[name]
    return suggest


def _tpe(
    new_ids: list[int], domain: Domain, trials: Trials, seed: int, *, startup_trials: int
) -> list[dict[str, Any]]:
    """Ask hyperopt's TPE, which is shown the best trials and the latest.

    It sets a model of the few best trials against one of all others. The first is as if all were
    shown: gamma makes up for those that are not. The second is of the others lately, so that a
    proposal does not take longer with every trial.
    """
    docs, gamma = trials.trials, GAMMA
    if len(docs) > REMEMBERED_BEST + REMEMBERED_LATEST:
        best = sorted(docs[:-REMEMBERED_LATEST], key=_loss)[:REMEMBERED_BEST]
        best.sort(key=lambda doc: int(doc["tid"]))
        shown = [*best, *docs[-REMEMBERED_LATEST:]]
        gamma *= math.sqrt(len(docs) / len(shown))
        trials = trials_from_docs(shown, validate=False)
    return tpe.suggest(  # type: ignore[no-any-return]
        new_ids, domain, trials, seed, n_startup_jobs=startup_trials, gamma=gamma
    )


def _loss(doc: dict[str, Any]) -> float:
    """Return a trial's loss; one without any comes last."""
    loss = doc["result"].get("loss")
    return math.inf if loss is None else float(loss)


def _adaptive_tpe(
    new_ids: list[int], domain: Domain, trials: Trials, seed: int
) -> list[dict[str, Any]]:
    """Ask hyperopt's adaptive TPE, which draws from the global generators and ignores the seed.

    It is shown the trials that have a loss, with times: it has no place for others.
    """
    from hyperopt import atpe

    judged, now = Trials(), coarse_utcnow()
    judged.insert_trial_docs(
        [
            {
                **doc,
                "book_time": doc["book_time"] or now,
                "refresh_time": doc["refresh_time"] or now,
            }
            for doc in trials
            if doc["result"].get("loss") is not None
        ]
    )
    judged.refresh()
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        docs: list[dict[str, Any]] = atpe.suggest(new_ids, domain, judged, seed)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    return docs


@dataclass
class Proposer:
    """Propose trials one by one."""

    space: SearchSpace
    """What may be proposed."""
    given: Sequence[Point]
    """Points to try before the algorithm is asked, in order."""
    suggest: Suggest
    """A hyperopt algorithm."""
    seed: int
    may_start: Callable[[Trials], bool]
    """Asked before each proposal with all trials so far; False ends the search."""
    on_proposal: Callable[[int, Point], None]
    """Told the number and point of each proposal before it runs: here its run is opened."""
    goes_on: Callable[[list[dict[str, Any]]], int | None] = lambda docs: None
    """Asked before each proposal, with hyperopt's trials so far, for the number of one that goes on."""
    taken: set[int] = field(default_factory=set)
    """Numbers of trials that a resumed search brings along."""

    def __call__(
        self, new_ids: list[int], domain: Domain, trials: Trials, seed: int
    ) -> list[dict[str, Any]]:
        """Propose one trial per new id; fewer, or none, ends the search."""
        docs: list[dict[str, Any]] = []
        for tid in new_ids:
            known = [*trials._dynamic_trials, *docs]
            paused = self.goes_on(known)
            if paused is not None:
                vals = next(d["misc"]["vals"] for d in known if d["misc"]["number"] == paused)
                number, point = paused, self.space.point_of_vals(vals)
            elif not self.may_start(trials):
                break
            else:
                seen = {doc["misc"]["key"] for doc in known}
                number = next(n for n in itertools.count() if n not in self.taken)
                new = self._given(seen) or self._new(number, tid, domain, trials, seen)
                if new is None:  # every point of a small space was tried
                    break
                point = new
                self.taken.add(number)
                self.on_proposal(number, point)
            docs.append(trial_doc(tid, number, point, self.space, domain, trials))
        return docs

    def _given(self, seen: set[str]) -> Point | None:
        return next((point for point in self.given if point.key not in seen), None)

    def _new(
        self, number: int, tid: int, domain: Domain, trials: Trials, seen: set[str]
    ) -> Point | None:
        """Ask the algorithm, then chance, until the point is new."""
        shown = one_doc_a_trial(trials)
        for attempt in range(2 * ATTEMPTS):
            suggest = self.suggest if attempt < ATTEMPTS else rand.suggest
            draw = named_seed(self.seed, "proposal", number, attempt)
            (doc,) = suggest([tid], domain, shown, draw)
            point = self.space.point_of_vals(doc["misc"]["vals"])
            if point.key not in seen:
                return point
        return None


def latest_docs(docs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last of hyperopt's trials for each of ours, the one that began last at the end.

    A trial that paused and went on is several of hyperopt's.
    """
    latest: dict[int, dict[str, Any]] = {}
    for doc in sorted(docs, key=lambda doc: int(doc["tid"])):
        latest.pop(doc["misc"]["number"], None)
        latest[doc["misc"]["number"]] = doc
    return list(latest.values())


def one_doc_a_trial(trials: Trials) -> Trials:
    """Return hyperopt's view of our trials, each once, under its number, with what it last came to."""
    ended = latest_docs(doc for doc in trials.trials if doc["state"] == JOB_STATE_DONE)
    docs = {doc["misc"]["number"]: doc for doc in [*latest_docs(trials.trials), *ended]}
    shown = []
    for number, doc in sorted(docs.items()):
        idxs = {name: [number] for name in doc["misc"]["vals"]}
        shown.append({**doc, "tid": number, "misc": {**doc["misc"], "tid": number, "idxs": idxs}})
    return trials_from_docs(shown, validate=False) if shown else Trials()


def trial_doc(
    tid: int, number: int, point: Point, space: SearchSpace, domain: Domain, trials: Trials
) -> dict[str, Any]:
    """Write a point, the trial of this number, as a hyperopt trial that has not run yet."""
    vals = space.vals(point)
    misc = {
        "tid": tid,
        "number": number,
        "key": point.key,
        "cmd": domain.cmd,
        "workdir": domain.workdir,
        "idxs": {name: [tid] for name in vals},
        "vals": vals,
    }
    docs: list[dict[str, Any]] = trials.new_trial_docs([tid], [None], [domain.new_result()], [misc])
    return docs[0]
