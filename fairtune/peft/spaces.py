"""Spaces: rules that tie what a model consists of to the bits of a mask.

A space is a value made of two functions of a model: `bits`, what each bit switches on, and
`always`, what trains whatever the bits are. The classifier always trains, in every space.
To add one, file a `Space` in `SPACES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fairtune.errors import InputError
from fairtune.peft.mask import Mask
from fairtune.peft.parts import architecture_name, head_names, normalization_names
from fairtune.registry import Registry

WRONG_LENGTH = "space {space!r} has {expected} bits for {model!r}, but {given} were given"
WRONG_BIT = (
    "bit {index} of {given} ({name!r}) is {bit!r}; "
    "space {space!r} has {expected} bits, each one of {levels}"
)


@dataclass(frozen=True)
class Bit:
    """One bit of a space for one model: its name, and the parameters that it switches on."""

    name: str
    parameters: tuple[str, ...]


def _none(model: nn.Module) -> tuple[()]:
    return ()


def parameter_sizes(model: nn.Module, chosen: Mapping[Bit, int]) -> dict[str, int]:
    """Return the number of values in every parameter, by name."""
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class Space:
    """A rule that ties the parameters of a model to bits."""

    name: str
    """The name in configurations and runs."""
    summary: str
    """One line for people."""
    bits: Callable[[nn.Module], Sequence[Bit]] = _none
    """The bits for a model, in order; raises `InputError` where the space does not fit it."""
    always: Callable[[nn.Module], Iterable[str]] = _none
    """Names of parameters that train whatever the bits are, beside the classifier's."""
    from_scratch: bool = False
    """Whether the weights are to be initialised anew before training."""
    levels: tuple[int, ...] = (0, 1)
    """The values that a bit can take."""
    sizes: Callable[[nn.Module, Mapping[Bit, int]], dict[str, int]] = parameter_sizes
    """Number of values in every parameter that the model has under the chosen bits."""
    prepare: Callable[[nn.Module, Mask, int], None] | None = None
    """What `apply_mask` does first, with its seed: puts new parameters into the model."""

    def n_bits(self, model: nn.Module) -> int:
        """Return the number of bits for a model; 0 where the space leaves no choice."""
        return len(self.bits(model))

    def bit_names(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the bits, zero-padded so that they sort: ``blocks.03.attn``."""
        return tuple(bit.name for bit in self.bits(model))

    def mask(self, model: nn.Module, bits: Sequence[int] = ()) -> Mask:
        """Make the mask of a model from bits.

        Parameters
        ----------
        model
            The model that the mask is for; it is not changed.
        bits
            ``n_bits(model)`` values, each one of `levels`; NumPy's integers will do.

        Raises
        ------
        InputError
            (a ValueError) Wrong number of bits, a value that is no level, or a space that does
            not fit the model.
        """
        parts = self.bits(model)
        given = list(bits)
        if len(given) != len(parts):
            raise InputError(
                WRONG_LENGTH.format(
                    space=self.name,
                    expected=len(parts),
                    model=architecture_name(model),
                    given=len(given),
                )
            )
        for index, (bit, part) in enumerate(zip(given, parts, strict=True)):
            if bit not in self.levels:
                raise InputError(
                    WRONG_BIT.format(
                        index=index,
                        given=len(given),
                        name=part.name,
                        bit=bit,
                        space=self.name,
                        expected=len(parts),
                        levels=", ".join(map(str, self.levels)),
                    )
                )
        chosen = {part: int(bit) for bit, part in zip(given, parts, strict=True)}
        on = {name for part, bit in chosen.items() if bit for name in part.parameters}
        names = sorted(on | set(self.always(model)) | set(head_names(model)))
        sizes = self.sizes(model, chosen)
        return Mask(
            space=self.name,
            architecture=architecture_name(model),
            names=tuple(part.name for part in parts),
            bits=tuple(chosen.values()),
            parameters=tuple(names),
            trained=sum(sizes[name] for name in names),
            total=sum(sizes.values()),
        )

    def known_masks(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return the masks that a search tries first, so that it never ends below them.

        Returns
        -------
        dict
            Name to bits, in order and without repetition: ``all``, ``none`` (the linear probe,
            where nothing else always trains), and where the space can say them ``norms`` and
            ``attention``. A space without bits has one mask, under its own name.
        """
        parts = self.bits(model)
        if not parts:
            return {self.name: ()}
        full = max(self.levels)
        norms = normalization_names(model)
        attention = {name for part in parts for name in part.parameters if ".attn." in f".{name}"}
        found = {"all": tuple(full for _ in parts), "none": tuple(0 for _ in parts)}
        for name, wanted in (("norms", norms), ("attention", attention)):
            bits = tuple(full if wanted.issuperset(part.parameters) else 0 for part in parts)
            if bits not in found.values():
                found[name] = bits
        return found


SPACES: Registry[Space] = Registry("space")


def register(space: Space, *aliases: str) -> Space:
    """File a space under its name."""
    return SPACES.register(space.name, *aliases)(space)


def get_space(name: str) -> Space:
    """Return a space by name; raises `InputError` that lists the known ones and the nearest.

    ``auto_peft1:101100`` is the space of one mask: it has no bits, and trains what these bits of
    `auto_peft1` train. One digit stands for all bits: ``lora:8``.
    """
    kind, colon, text = name.partition(":")
    return _fixed(SPACES[kind], text) if colon else SPACES[kind]


def _fixed(space: Space, text: str) -> Space:
    try:
        bits = tuple(int(part) for part in (text.split("-") if "-" in text else text))
    except ValueError:
        bits = ()
    if not bits:
        raise InputError(
            f"space '{space.name}:{text}': after the colon stand bits like 1011, or 4-0-16"
        )

    def all_bits(model: nn.Module) -> tuple[int, ...]:
        return bits * space.n_bits(model) if len(bits) == 1 else bits

    def chosen(model: nn.Module) -> dict[Bit, int]:
        return dict(zip(space.bits(model), all_bits(model), strict=True))

    def trains(model: nn.Module) -> tuple[str, ...]:
        return space.mask(model, all_bits(model)).parameters

    def prepare(model: nn.Module, mask: Mask, seed: int) -> None:
        if space.prepare is not None:
            space.prepare(model, space.mask(model, all_bits(model)), seed)

    return Space(
        f"{space.name}:{text}",
        f"one mask of {space.name}",
        always=trains,
        from_scratch=space.from_scratch,
        sizes=lambda model, _: space.sizes(model, chosen(model)),
        prepare=prepare if space.prepare is not None else None,
    )


def padded(name: str) -> str:
    """Pad the numbers in a dotted name to two digits, so that names sort: ``blocks.03.attn``."""
    return ".".join(f"{int(p):02d}" if p.isdecimal() else p for p in name.split("."))
