"""MONAI's SegResNet (arXiv:1810.11654, without its autoencoder), entered at any stage and decoded in a box."""

from __future__ import annotations

from collections.abc import Iterator

from monai.networks.nets import SegResNet as MonaiSegResNet
from torch import Tensor, nn

from HybridMIMLib.architectures import SegResNetSize
from HybridMIMLib.networks.dropout import SampleDropout
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid


class SegResNet(EncoderDecoder, MonaiSegResNet):  # type: ignore[misc]  # MONAI is not typed
    """SegResNet: residual blocks with group norm, linear interpolation up, skips that are added.

    Args:
        channels: of the scan.
        size: filters of the first stage and blocks of each; each further stage has twice the filters.
        dropout: share of channels dropped while training, after the first convolution and at the entry of each
            further stage.
    """

    convInit: nn.Module  # MONAI's name
    down_layers: nn.ModuleList
    up_layers: nn.ModuleList
    up_samples: nn.ModuleList
    conv_final: nn.Sequential

    encoder_parts = ("convInit", "down_layers")
    head_name = "conv_final.2.conv"

    def __init__(self, channels: int, size: SegResNetSize, dropout: float = 0.1) -> None:
        super().__init__(
            in_channels=channels,
            out_channels=1,
            init_filters=size.filters,
            blocks_down=size.blocks,
            blocks_up=(1,) * (len(size.blocks) - 1),
        )
        del self.conv_final[2]
        stages = range(len(size.blocks))
        self.encoder_layers = (("convInit", "down_layers.0"), *((f"down_layers.{stage}",) for stage in stages[1:]))
        self.widths = tuple(size.filters * 2**stage for stage in stages)
        self.strides = tuple((2**stage,) * 3 for stage in stages)
        self.out_width, self.fill_width = size.filters, channels
        self.decoder_widths = self.widths[:-1]
        self.dropouts = nn.ModuleList(SampleDropout(dropout, stage) for stage in stages)

    def encode_from(self, stage: int, x: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_from`."""
        x = self.convInit(x) if stage == 0 else x
        pyramid = []
        for number in range(stage, len(self.down_layers)):
            x = self.down_layers[number](self.dropouts[number](x))
            pyramid.append(x)
        return pyramid

    def decode_stages(self, pyramid: Pyramid, box: Box | None = None) -> Iterator[Tensor]:
        """See :meth:`EncoderDecoder.decode_stages`."""
        *skips, x = self.in_box(pyramid, box)
        for number, (enlarge, layer) in enumerate(zip(self.up_samples, self.up_layers), 1):
            x = layer(enlarge(x) + skips[-number])
            yield x if number < len(skips) else self.conv_final(x)
