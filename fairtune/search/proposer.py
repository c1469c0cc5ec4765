"""Who proposes the next trial: the known masks first, then a hyperopt algorithm, never twice the same.

A `Proposer` is what hyperopt calls an ``algo``: a function of (new ids, domain, trials, seed). Two of
its habits make a resumed search propose what an uninterrupted one would have: it ignores the seed that
`fmin` hands over (a stream that restarts with the process) and derives its own from the trial's number;
and a proposal depends on nothing but the trials before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hyperopt import Trials, anneal, rand, tpe
from hyperopt.base import Domain

from fairtune.errors import InputError
from fairtune.search.point import Point, SearchSpace
from fairtune.seeding import seed as named_seed

ATTEMPTS = 50


def algorithm(name: str, startup_trials: int) -> Callable[..., list[dict[str, Any]]]:
    """Return hyperopt's suggest function of this name."""
    if name == "tpe":
        suggest: Callable[..., list[dict[str, Any]]] = partial(
            tpe.suggest, n_startup_jobs=startup_trials
        )
        return suggest
    if name == "atpe":
        try:
            from hyperopt import atpe
        except ImportError:
            raise InputError(
                "search.algorithm=atpe needs lightgbm: pip install 'hyperopt[ATPE]'"
            ) from None
        return atpe.suggest  # type: ignore[no-any-return]
    return {"rand": rand.suggest, "anneal": anneal.suggest}[name]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Proposer:
    """Propose trials one by one.

    Attributes
    ----------
    known
        Points to try before the algorithm is asked, in order.
    suggest
        A hyperopt algorithm.
    may_start
        Asked before each proposal with all trials so far; False ends the search.
    on_proposal
        Told the number and point of each proposal before it runs: here its run is opened.
    """

    space: SearchSpace
    known: Sequence[Point]
    suggest: Callable[..., list[dict[str, Any]]]
    seed: int
    may_start: Callable[[Trials], bool]
    on_proposal: Callable[[int, Point], None]

    def __call__(
        self, new_ids: list[int], domain: Domain, trials: Trials, seed: int
    ) -> list[dict[str, Any]]:
        """Propose one trial per new id; fewer, or none, ends the search."""
        docs: list[dict[str, Any]] = []
        for number in new_ids:
            if not self.may_start(trials):
                return docs
            seen = {self._point(doc).key for doc in [*trials._dynamic_trials, *docs]}
            doc = self._known(number, domain, trials, seen) or self._new(
                number, domain, trials, seen
            )
            if doc is None:  # every point of a small space was tried
                return docs
            self.on_proposal(number, self._point(doc))
            docs.append(doc)
        return docs

    def _point(self, doc: dict[str, Any]) -> Point:
        return self.space.point_of_vals(doc["misc"]["vals"])

    def _known(
        self, number: int, domain: Domain, trials: Trials, seen: set[str]
    ) -> dict[str, Any] | None:
        for point in self.known:
            if point.key not in seen:
                return trial_doc(number, point, self.space, domain, trials)
        return None

    def _new(
        self, number: int, domain: Domain, trials: Trials, seen: set[str]
    ) -> dict[str, Any] | None:
        """Ask the algorithm, then chance, until the point is new."""
        for attempt in range(2 * ATTEMPTS):
            suggest = self.suggest if attempt < ATTEMPTS else rand.suggest
            draw = named_seed(self.seed, "proposal", number, attempt)
            (doc,) = suggest([number], domain, trials, draw)
            if self._point(doc).key not in seen:
                return trial_doc(number, self._point(doc), self.space, domain, trials)
        return None


def trial_doc(
    number: int, point: Point, space: SearchSpace, domain: Domain, trials: Trials
) -> dict[str, Any]:
    """Write a point as a hyperopt trial that has not run yet."""
    vals = space.vals(point)
    misc = {
        "tid": number,
        "cmd": domain.cmd,
        "workdir": domain.workdir,
        "idxs": {name: [number] for name in vals},
        "vals": vals,
    }
    (doc,) = trials.new_trial_docs([number], [None], [domain.new_result()], [misc])
    return doc  # type: ignore[no-any-return]
