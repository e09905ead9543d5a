"""How a fine-tuning starts: what it takes from a pre-training, what is frozen, and how fast each layer learns.

Layers near the scan learn the most general features and change the least: with a layer-wise decay the learning rate
falls by a constant factor from each layer of the encoder to the one before it (ELECTRA, arXiv:2003.10555; BEiT,
arXiv:2106.08254). Decoder and head learn at the full rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from HybridMIMLib.config import Run
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.networks import EncoderDecoder
from HybridMIMLib.networks.dropout import SampleDropout
from HybridMIMLib.pretrained import Pretrained
from HybridMIMLib.settings.finetuning import FinetuningSettings
from HybridMIMLib.training import Pace
from HybridMIMLib.transfer import grouped, transfer

_BACKBONE = "backbone."


def check_start(run: Run, start: Pretrained | None) -> None:
    """See whether there is anything to freeze.

    Raises:
        SettingsError: the encoder is to be frozen, and nothing was learnt by it.
    """
    if run.finetuning.frozen_steps and (start is None or start.is_scratch):
        missing = "without weights" if start is None else f"in {start.path}, made with objective none,"
        raise SettingsError(
            f"finetuning.frozen_steps is {run.finetuning.frozen_steps}, and {missing} the encoder has learnt nothing "
            "yet",
            cure="Add --weights PRETRAINED, or set finetuning.frozen_steps to 0.",
        )


def begin_with(
    backbone: EncoderDecoder,
    start: Pretrained | None,
    partial: bool,
    events: EventLog,
    encoder_alone: bool = False,
    frozen: bool = False,
) -> str:
    """Fill the backbone from pre-trained weights, if any, and tell of it; the sentence sums it up.

    Args:
        backbone: its tensors are replaced; those without a counterpart keep their initial values.
        start: the weights; None to begin from scratch.
        partial: see :func:`transfer`.
        events: where to tell.
        encoder_alone: leave the decoder at its initial values.
        frozen: whether the encoder is to keep for a while what it begins with.

    Raises:
        ModelError: the weights do not fit.
    """
    if start is None:
        events.message("from scratch")
        return "from scratch"
    if encoder_alone:
        events.message("the decoder of the weights is left out (finetuning.start: encoder)")
        start = _encoder_of(start, backbone)
    account = transfer(backbone, start, partial)
    for line in account.lines():
        events.message(line)
    if frozen and (initial := account.parts[0].kept):
        events.warning(
            f"frozen at their initial values, because the weights have nothing for them: {grouped(initial)} of the "
            "encoder. Set finetuning.frozen_steps to 0, or take weights that fill it."
        )
    return account.sentence()


def _encoder_of(start: Pretrained, backbone: EncoderDecoder) -> Pretrained:
    """The same weights without what the backbone's decoder would take."""
    names = start.names_in(backbone)
    kept = {
        name: tensor
        for name, tensor in start.tensors.items()
        if name not in names or backbone.is_of_encoder(names[name])
    }
    return replace(start, tensors=kept)


def paces(backbone: EncoderDecoder, settings: FinetuningSettings) -> Callable[[str], Pace]:
    """How fast each tensor of a segmentation network learns, by its name.

    Args:
        backbone: of the network.
        settings: with ``layer_decay`` and ``frozen_steps``.
    """
    after = math.inf if settings.frozen_steps < 0 else settings.frozen_steps

    def pace(name: str) -> Pace:
        own = name.removeprefix(_BACKBONE)
        if own == name or not backbone.is_of_encoder(own):
            return Pace()
        return Pace(settings.layer_decay ** backbone.layers_below_decoder(own), after)

    return pace


class Freezer:
    """Keeps an encoder as it came for the first steps of a training.

    A frozen encoder has no gradient, and what it computes is not kept for one, which makes a step cheaper. It
    computes as in the finished model: nothing is dropped. (Its norms keep no statistics, and so have no mode.)

    Args:
        backbone: with the encoder.
        steps: in which it is frozen; -1: all.
    """

    def __init__(self, backbone: EncoderDecoder, steps: int) -> None:
        self._steps = math.inf if steps < 0 else steps
        # Only what can learn is thawed: some of MONAI's tensors never do.
        self._parameters = [
            parameter
            for name, parameter in backbone.named_parameters()
            if backbone.is_of_encoder(name) and parameter.requires_grad
        ]
        parts: list[nn.Module] = [backbone.get_submodule(part) for part in backbone.encoder_parts]
        # These lie beside the parts, and are the encoder's all the same.
        self._modules = parts + [one for one in backbone.modules() if isinstance(one, SampleDropout)]

    def at(self, step: int) -> None:
        """Freeze or thaw, as is due in ``step``; call it after ``train()``, before the network computes."""
        frozen = step <= self._steps
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            for module in self._modules:
                module.eval()
