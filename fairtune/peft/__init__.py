"""Which parts of a model train: components, spaces, masks; and the models themselves."""

from fairtune.peft import general, lora, published  # noqa: F401  (fill the registry of spaces)
from fairtune.peft.apply import apply_mask, set_train_mode, trained_share
from fairtune.peft.checkpoint import (
    delta_state,
    load_delta,
    save_delta,
    weights_hash,
    write_weights,
)
from fairtune.peft.components import Component, components, rest_names
from fairtune.peft.lora import merge_adapters
from fairtune.peft.mask import Mask, bits_text
from fairtune.peft.models import BaseModel, build_model, init_head, input_size, normalization
from fairtune.peft.parts import architecture_name, head_names
from fairtune.peft.spaces import SPACES, Bit, Space, get_space
from fairtune.peft.weights import WEIGHTS, WeightSource

__all__ = [
    "SPACES",
    "WEIGHTS",
    "BaseModel",
    "Bit",
    "Component",
    "Mask",
    "Space",
    "WeightSource",
    "apply_mask",
    "architecture_name",
    "bits_text",
    "build_model",
    "components",
    "delta_state",
    "get_space",
    "head_names",
    "init_head",
    "input_size",
    "load_delta",
    "merge_adapters",
    "normalization",
    "rest_names",
    "save_delta",
    "set_train_mode",
    "trained_share",
    "weights_hash",
    "write_weights",
]
