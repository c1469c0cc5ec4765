"""Which parts of a model train: components, spaces, masks; and the models themselves."""

from fairtune.peft import general, published  # noqa: F401  (fill the registry of spaces)
from fairtune.peft.apply import apply_mask, set_train_mode, trained_share
from fairtune.peft.components import Component, components, rest_names
from fairtune.peft.mask import Mask
from fairtune.peft.parts import architecture_name, head_names
from fairtune.peft.spaces import SPACES, Bit, Space, get_space

__all__ = [
    "SPACES",
    "Bit",
    "Component",
    "Mask",
    "Space",
    "apply_mask",
    "architecture_name",
    "components",
    "get_space",
    "head_names",
    "rest_names",
    "set_train_mode",
    "trained_share",
]
