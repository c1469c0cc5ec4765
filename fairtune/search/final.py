"""The choice of the winner: the best trials once more, with fresh seeds, on validation.

The best of many noisy trials owes part of its value to luck. So the best few are fine-tuned again,
several times each, and ranked by a lower bound of what they reach (see `standings`). Two baselines,
full fine-tuning and the linear probe, run with as many seeds and compete: where a baseline is best on
validation, it wins, and a reader can compare like with like.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlflow.entities import Run

from fairtune.config import Config
from fairtune.fairness import Objective, get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.peft import Mask
from fairtune.search.point import Point, SearchSpace
from fairtune.search.runner import ERROR, has_ended
from fairtune.search.standings import Candidate, FinalRun, Standing, patient_error, standings
from fairtune.search.study import FinishedTrial
from fairtune.search.trial import Trial, mask_params, mask_tags, run_trial
from fairtune.search.worker import stop_requested, worker_workspace
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RunLog, is_store_failure, one_line
from fairtune.workspace import Workspace

logger = logging.getLogger(__name__)

FINAL_KEY = "fairtune.final_key"
CANDIDATE = "fairtune.candidate"
PATIENT_ERROR = "objective_patient_error"
BASELINES = {"full fine-tuning": "fullft", "linear probe": "linear_readout"}


def choose_candidates(
    trials: Sequence[FinishedTrial], objective: Objective, k: int, masks: Mapping[int, Mask]
) -> list[Candidate]:
    """Take the best k trials with different masks, among those that were not pruned.

    `masks` holds the mask of each trial by its number. Where every trial was pruned, all compete.
    """
    ranked = sorted(_whole(trials), key=lambda trial: (objective.loss(trial.value), trial.number))
    chosen: dict[str, Candidate] = {}
    for trial in ranked:
        mask = masks[trial.number]
        chosen.setdefault(
            mask.fingerprint,
            Candidate(
                name=f"trial-{trial.number:03d}",
                space=mask.space,
                bits=mask.bits,
                learning_rate=trial.point.learning_rate,
                extras=trial.point.extras,
                number=trial.number,
                first_value=trial.value,
            ),
        )
    return list(chosen.values())[:k]


def _whole(trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Leave out trials that were pruned, unless all were."""
    return [trial for trial in trials if not trial.pruned] or list(trials)


def baselines(
    workspace: Workspace, trials: Sequence[FinishedTrial], objective: Objective
) -> list[Candidate]:
    """Return full fine-tuning and the linear probe as candidates.

    Each takes the learning rate (and what else is searched) that did best on validation for the
    nearest mask in the search: all bits, or none; in a space without bits, whose trials have one mask,
    the same. Without such a trial it takes ``train.learning_rate``.
    """
    found = []
    ranked = sorted(_whole(trials), key=lambda trial: objective.loss(trial.value))
    for name, space in BASELINES.items():
        bit = max(workspace.space.levels) if space == "fullft" else 0
        same = _is_the_only_mask(workspace, space)
        alike = [t.point for t in ranked if same or set(t.point.bits) == {bit}]
        point = alike[0] if alike else Point((), workspace.config.train.learning_rate)
        found.append(Candidate(name, space, (), point.learning_rate, point.extras))
    return found


def _is_the_only_mask(workspace: Workspace, space: str) -> bool:
    """Say whether the searched space has no bits and trains what a baseline trains."""
    own = workspace.space
    if own.n_bits(workspace.base.model) or own.from_scratch:
        return False
    return workspace.mask(()).parameters == workspace.mask((), space).parameters


@dataclass(frozen=True)
class FinalRunner:
    """Fine-tune one candidate with one seed. Picklable; skips what the parent run already has."""

    config: Config
    source: str | None
    parent: RunLog
    stop: StopRequest = field(default_factory=StopRequest)

    def __call__(self, job: tuple[Candidate, int]) -> FinalRun:
        """Run one (candidate, seed index)."""
        candidate, index = job
        point = Point(candidate.bits, candidate.learning_rate, candidate.extras)
        key = f"{candidate.space}/{point.key}/{index}"
        done = self.parent.children(
            f"tags.`{FINAL_KEY}` = '{key}' and attributes.status = 'FINISHED'"
        )
        if done:
            return _ended(candidate, index, done[0])
        workspace = worker_workspace(self.config, self.source)
        mask = workspace.mask(candidate.bits, candidate.space)
        log = self._open(candidate, index, key, workspace, mask)
        # By what is fine-tuned, not by rank: a resumed search repeats the same figures.
        seed = named_seed(self.config.seed, "final", candidate.space, point.key, index)
        try:
            trial = run_trial(
                workspace,
                mask,
                candidate.learning_rate,
                seed=seed,
                objective=get_objective(self.config.search.objective),
                log=log,
                extras=candidate.extras,
                should_stop=lambda: stop_requested(self.stop, self.parent),
            )
        except Exception as error:
            if is_store_failure(error):
                raise
            reason = one_line(error)
            logger.warning("%s, seed %d, failed: %s", candidate.name, index, reason)
            log.log(tags={ERROR: reason})
            log.end("FAILED")
            return FinalRun(candidate, index, log.run_id, math.nan, math.nan, error=reason)
        if trial.epochs < self.config.train.epochs:
            log.end("KILLED")
            raise InterruptedSearchError("stopped by Ctrl-C")
        spread = self._patient_error(workspace, trial)
        log.log(metrics={PATIENT_ERROR: spread})
        log.end()
        auroc = trial.report.headline["auroc"]
        return FinalRun(candidate, index, log.run_id, trial.value, auroc, spread)

    def _open(
        self, candidate: Candidate, index: int, key: str, workspace: Workspace, mask: Mask
    ) -> RunLog:
        params = mask_params(mask, candidate.learning_rate, candidate.extras)
        return self.parent.child(
            f"final {candidate.name} seed-{index}",
            "final",
            params={**params, "seed_index": index},
            tags={
                FINAL_KEY: key,
                CANDIDATE: candidate.name,
                **mask_tags(mask, workspace),
            },
        )

    def _patient_error(self, workspace: Workspace, trial: Trial) -> float:
        return patient_error(
            workspace.split("val"),
            trial.probabilities,
            get_objective(self.config.search.objective),
            n_resamples=self.config.search.final.resamples,
            seed=named_seed(self.config.seed, "final", "patients"),  # the same for all candidates
        )


def stored_standings(parent: RunLog, space: SearchSpace) -> list[Standing]:
    """Return the standings as the final runs of a search have left them; nothing is trained.

    Of several runs of a candidate with one seed the last that ended counts. What failed stays failed.
    """
    runs: dict[tuple[str, str], Run] = {}
    for run in parent.children("tags.`fairtune.kind` = 'final'"):
        if has_ended(run):
            runs[run.data.tags[CANDIDATE], run.data.params["seed_index"]] = run
    return standings(
        [_ended(_candidate(run, space), int(index), run) for (_, index), run in runs.items()]
    )


def _ended(candidate: Candidate, index: int, run: Run) -> FinalRun:
    """Read a final run that has ended."""
    found, error = run.data.metrics, run.data.tags.get(ERROR)
    if error is not None:
        return FinalRun(candidate, index, run.info.run_id, math.nan, math.nan, error=error)
    values = (found["objective"], found["val/auroc"], found[PATIENT_ERROR])
    return FinalRun(candidate, index, run.info.run_id, *values)


def _candidate(run: Run, space: SearchSpace) -> Candidate:
    """Read the candidate of a final run from its run."""
    params, tags = run.data.params, run.data.tags
    name, bits = tags[CANDIDATE], [f"mask.{bit}" for bit in space.bit_names]
    extras = all(key in params for key, _ in space.extra)  # a baseline may be without
    return Candidate(
        name=name,
        space=tags["fairtune.space"],
        bits=() if name in BASELINES else tuple(int(params[bit]) for bit in bits),
        learning_rate=float(params["learning_rate"]),
        extras=space.extras_in(params) if extras else (),
        number=None if name in BASELINES else int(name.removeprefix("trial-")),
    )
