"""Where the time of a fine-tune goes: a table, and a trace to look at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity

from fairtune.training.result import FineTuneResult

WARM_UP = 2
"""Optimiser steps before the traced ones: the first ones allocate memory."""

STEPS = 4
"""Optimiser steps that are traced; a trace of all would be gigabytes."""

OPERATORS = 15
"""Rows of the table of operators."""


@dataclass
class Profile:
    """What a profiled fine-tune came to.

    Attributes
    ----------
    seconds
        Wall time of the whole.
    operators
        (name, milliseconds per step, calls per step) of the traced steps, the costliest first; on
        a GPU its own time.
    """

    seconds: float = 0.0
    operators: list[tuple[str, float, float]] = field(default_factory=list)

    def table(self, result: FineTuneResult) -> str:
        """Return two tables as text: the parts of the fine-tune, and the operators of a step."""
        parts = {
            "waiting for batches": sum(epoch.waiting_seconds for epoch in result.epochs),
            "training steps": sum(e.seconds - e.waiting_seconds for e in result.epochs),
            "validation": sum(epoch.validation_seconds for epoch in result.epochs),
        }
        parts["the rest"] = max(0.0, self.seconds - sum(parts.values()))
        lines = [f"{'part':40} {'seconds':>10} {'share':>7}"]
        lines += [f"{k:40} {v:10.2f} {v / self.seconds:7.1%}" for k, v in parts.items()]
        if self.operators:
            total = sum(milliseconds for _, milliseconds, _ in self.operators)
            lines += ["", f"{'operator, of a step':40} {'ms':>10} {'share':>7} {'calls':>7}"]
            lines += [
                f"{name[:40]:40} {ms:10.2f} {ms / total:7.1%} {calls:7.0f}"
                for name, ms, calls in self.operators[:OPERATORS]
            ]
        return "\n".join(lines)


@contextmanager
def profiled(trace: Path) -> Iterator[Profile]:
    """Measure what runs inside, and trace a few of its optimiser steps.

    Parameters
    ----------
    trace
        Where to write the trace: a ``.json.gz`` that Perfetto and ``chrome://tracing`` open. A
        fine-tune of fewer than ``WARM_UP + STEPS`` steps leaves none.
    """
    found = Profile()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def keep(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(trace))
        found.operators = [
            (event.key, _microseconds(event) / 1e3 / STEPS, event.count / STEPS)
            for event in sorted(profiler.key_averages(), key=_microseconds, reverse=True)
            if _microseconds(event) > 0 and not event.key.startswith("ProfilerStep")
        ]

    started = time.perf_counter()
    schedule = torch.profiler.schedule(wait=1, warmup=WARM_UP - 1, active=STEPS, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=keep
    ) as profiler:
        handle = register_optimizer_step_post_hook(lambda *_: profiler.step())
        try:
            yield found
        finally:
            handle.remove()
            found.seconds = time.perf_counter() - started


def _microseconds(event: Any) -> float:
    """Time of an operator without what it calls: on the GPU where there is one, else on the CPU."""
    on_device = float(getattr(event, "self_device_time_total", 0.0))
    return on_device if torch.cuda.is_available() else float(event.self_cpu_time_total)
