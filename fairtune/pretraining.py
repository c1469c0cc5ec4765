"""Train a whole model on a source task and keep its body as base weights: the demo's backbone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from fairtune.config import Config
from fairtune.errors import InputError
from fairtune.peft import apply_mask, get_space, head_names, weights_hash
from fairtune.peft.checkpoint import write_weights
from fairtune.progress import progress_bar
from fairtune.seeding import seed as named_seed
from fairtune.training import Epoch, fine_tune
from fairtune.workspace import open_workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """What pre-training came to."""

    path: Path
    bytes: int
    base_hash: str
    accuracy: float
    """On the source task's validation split, after the last epoch."""


def pretrain(config: Config, source: str | None, output: Path) -> Pretrained:
    """Train from scratch as the configuration says and write all but the head.

    The file is written under a temporary name and renamed: never half a file.

    Raises
    ------
    InputError
        No such folder, or a folder of that name, before any training; what `open_workspace` raises.
    """
    if not output.absolute().parent.is_dir():
        raise InputError(f"no folder {output.absolute().parent} to write {output.name} into")
    if output.is_dir():
        raise InputError(f"{output} is a folder: --output names the file to write")
    workspace = open_workspace(config, source)
    seed = named_seed(config.seed, "pretrain")
    model = workspace.base.fresh(seed, from_scratch=True)
    apply_mask(model, get_space("train_from_scratch").mask(model, ()))
    with progress_bar(total=config.train.epochs, unit="epoch", desc="pretrain") as bar:

        def on_epoch(epoch: Epoch) -> bool:
            accuracy = epoch.report.headline["accuracy"]
            bar.set_postfix_str(f"loss {epoch.loss:.3f}, val accuracy {accuracy:.3f}")
            bar.update()
            return True

        result = fine_tune(
            model,
            workspace.split("train"),
            workspace.split("val"),
            workspace.spec,
            config.train,
            seed=seed,
            device=workspace.device,
            on_epoch=on_epoch,
        )
    model.cpu()
    head = set(head_names(model))
    body = {name: value for name, value in model.state_dict().items() if name not in head}
    metadata = {
        "architecture": config.model.architecture,
        "options": json.dumps(config.model.options),
        "config": config.to_yaml(),
    }
    write_weights(output, body, metadata)
    return Pretrained(
        output, output.stat().st_size, weights_hash(model), result.report.headline["accuracy"]
    )
