"""Pre-trained weights → a network, with an account of what was loaded, reshaped and left out.

The network may differ from the one that was pre-trained: in the scan's channels, the crop, the window or the token
(:mod:`HybridMIMLib.reshaping`), or in parts that have no counterpart. Nothing of that goes by in silence: too little
for the encoder is an error, and the rest is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor, prod
from pathlib import Path

from torch import Tensor

from HybridMIMLib.checkpoints import WRAPPERS
from HybridMIMLib.errors import ModelError
from HybridMIMLib.networks.interface import EncoderDecoder, Triple
from HybridMIMLib.networks.unetr import UNETR
from HybridMIMLib.pretrained import Pretrained
from HybridMIMLib.reshaping import POSITIONS, TOKENS, Grids, cube_side, fitted

ENOUGH = 0.9
"""Share of the encoder's numbers that must come from the weights, unless a part of them was asked for."""


@dataclass(frozen=True)
class Part:
    """What became of the encoder or the decoder.

    Attributes:
        name: ``encoder`` or ``decoder``.
        tensors, numbers: learnt ones that it has.
        loaded: those that were filled; ``loaded_numbers`` in them.
        kept: names of those that keep their initial values.
    """

    name: str
    tensors: int
    numbers: int
    loaded: int
    loaded_numbers: int
    kept: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of its numbers that were loaded."""
        return self.loaded_numbers / max(self.numbers, 1)

    def __str__(self) -> str:
        text = (
            f"{self.name}: loaded {self.loaded} of {self.tensors} tensors, {self.loaded_numbers:,} of "
            f"{self.numbers:,} numbers ({percent(self.share)})"
        )
        return text + (f"; at their initial values: {grouped(self.kept)}" if self.kept else "")


@dataclass(frozen=True)
class Account:
    """What became of pre-trained weights.

    Attributes:
        path: of the file.
        parts: encoder and decoder.
        reshaped: names of tensors that were reshaped, and how.
        left_out: names in the file that were not used, and why.
        notes: what else there is to say.
        scratch: whether nothing was learnt in these weights.
    """

    path: Path
    parts: tuple[Part, Part]
    reshaped: Mapping[str, str]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()
    scratch: bool = False

    def sentence(self) -> str:
        """All in one sentence."""
        encoder, decoder = self.parts
        text = (
            f"loaded {encoder.loaded + decoder.loaded} of {encoder.tensors + decoder.tensors} tensors "
            f"({percent(encoder.share)} of the encoder's numbers, {percent(decoder.share)} of the decoder's)"
        )
        text += f", {len(self.reshaped)} of them reshaped," if self.reshaped else ""
        text += f" from {self.path}"
        text = f"from scratch: {text}" if self.scratch else text
        return text + (f"; {len(self.left_out)} of the file left out" if self.left_out else "")

    def lines(self) -> list[str]:
        """The account, a line a subject."""
        lines = [f"weights of {self.path}", *self.notes, *map(str, self.parts)]
        for title, reasons in (("reshaped", self.reshaped), ("left out of the file", self.left_out)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name, why in reasons.items() if why == reason]
                lines.append(f"{title}, {reason}: {grouped(names)}")
        return lines


def transfer(backbone: EncoderDecoder, given: Pretrained, partial: bool = False) -> Account:
    """Fill a backbone with all that fits, and say what that was.

    Args:
        backbone: its tensors are replaced; those without a counterpart stay.
        given: the weights.
        partial: start from them also when they fill less than 90 % of the encoder.

    Raises:
        ModelError: nothing fits the encoder, or too little; nothing was copied.
    """
    own = backbone.state_dict()
    names = given.names_in(backbone)
    grids = _grids(backbone, given, names)
    filled: dict[str, Tensor] = {}
    reshaped: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, tensor in given.tensors.items():
        target = names.get(name)
        if target is None or target in filled:
            left_out[name] = "not in this network" if target is None else "under a name that was there before"
            continue
        found = fitted(target, tensor, own[target], grids)
        if found is None:
            left_out[name] = "another shape"
            continue
        filled[target], how = found
        if how:
            reshaped[target] = how
    account = Account(given.path, _parts(backbone, own, filled), reshaped, left_out, _notes(given), given.is_scratch)
    _check_enough(account, given, own, partial)
    backbone.load_state_dict({**own, **filled})
    return account


def percent(share: float) -> str:
    """Rounded down: 100 % is all."""
    return f"{floor(100 * share)} %"


def grouped(names: Iterable[str]) -> str:
    """Names summed up by their first part, or in full where there is one of a kind."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_first_parts(name), []).append(name)
    return ", ".join(some[0] if len(some) == 1 else f"{group} ({len(some)})" for group, some in groups.items())


def _first_parts(name: str) -> str:
    """The first part, behind what wraps it, which alone would say nothing."""
    first, _, rest = name.partition(".")
    return f"{first}.{_first_parts(rest)}" if first in WRAPPERS and rest else first


def _parts(backbone: EncoderDecoder, own: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> tuple[Part, Part]:
    learnt = [name for name, tensor in own.items() if tensor.is_floating_point()]
    encoder = [name for name in learnt if backbone.is_of_encoder(name)]
    decoder = [name for name in learnt if not backbone.is_of_encoder(name)]
    return _part("encoder", encoder, own, filled), _part("decoder", decoder, own, filled)


def _part(title: str, names: list[str], own: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> Part:
    loaded = [name for name in names if name in filled]
    kept = tuple(name for name in names if name not in filled)
    numbers, loaded_numbers = (sum(own[name].numel() for name in some) for some in (names, loaded))
    return Part(title, len(names), numbers, len(loaded), loaded_numbers, kept)


def _notes(given: Pretrained) -> tuple[str, ...]:
    notes = []
    if given.origin is not None:
        origin = given.origin
        what = " and ".join(origin.trained) + ("" if len(origin.trained) > 1 else " alone")
        if given.is_scratch:
            return ("the weights are those that a training from scratch begins with (objective none)",)
        notes.append(f"pre-trained with {origin.objective.objective} on {origin.scans} scan(s): {what}")
    if given.beside:
        notes.append(f"beside the weights, not used: {', '.join(given.beside)}")
    return tuple(notes)


def _check_enough(account: Account, given: Pretrained, own: Mapping[str, Tensor], partial: bool) -> None:
    encoder = account.parts[0]
    if not encoder.loaded_numbers:
        first = next(iter(given.tensors.items()), None)
        raise ModelError(
            f"{given.path}: none of its {len(given.tensors)} tensors fits the encoder; {_shown(first)} is the first "
            f"of them, {_shown((encoder.kept[0], own[encoder.kept[0]]))} that of the encoder",
            cure="Choose the network that they were trained with (network.architecture, network.size), or other "
            "weights.",
        )
    if encoder.share < ENOUGH and not partial:
        others = [name for name, why in account.left_out.items() if why == "another shape"]
        shapes = f"; of another shape: {grouped(others)}" if others else ""
        raise ModelError(
            f"{given.path}: fills {percent(encoder.share)} of the encoder, less than {percent(ENOUGH)}; not filled: "
            f"{grouped(encoder.kept)}{shapes}",
            cure="Choose the network settings that they were trained with, or set partial_weights to true to start "
            "from a part of the weights.",
        )


def _shown(item: tuple[str, Tensor] | None) -> str:
    return "none" if item is None else f"{item[0]} {list(item[1].shape)}"


def _grids(backbone: EncoderDecoder, given: Pretrained, names: Mapping[str, str]) -> Grids:
    """Of a ViT's tokens; where others made the weights: a cube, or else as in the network if it has as many."""
    if not isinstance(backbone, UNETR):
        return Grids()
    tensors = {target: given.tensors[name] for name, target in names.items()}
    if POSITIONS not in tensors:
        return Grids()
    d, h, w = backbone.grid
    own: Triple = (d, h, w)
    before: Triple | None = None
    if given.origin is not None and TOKENS in tensors:
        d, h, w = (c // t for c, t in zip(given.origin.plan.crop, tensors[TOKENS].shape[2:]))
        before = (d, h, w)
    elif (side := cube_side(tensors[POSITIONS].shape[1])) is not None:
        before = (side, side, side)
    elif tensors[POSITIONS].shape[1] == prod(own):
        before = own
    return Grids(before, own)
