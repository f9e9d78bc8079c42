"""An FPN over any bottom-up network, whose coarsest levels P6 and P7 come from P5."""

import math
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor

from ...config.rules import ConfigError, first_problem


class _CoarseLevels(LastLevelP6P7):
    """Detectron2's P6 and P7; on a CPU in float32, also in mixed precision.

    With PyTorch 2.10 to 2.15 parts of the bfloat16 gradient of a convolution's weight were left
    unwritten there where the stride is 2 and the map one cell wide: P6 of an image of 64 pixels.
    """

    def forward(self, c5: Tensor) -> list[Tensor]:
        if c5.device.type != "cpu":
            return super().forward(c5)
        with torch.autocast("cpu", enabled=False):
            return super().forward(c5.to(self.p6.weight.dtype))


def fpn_over(bottom_up: Backbone, cfg: CfgNode) -> FPN:
    """FPN over ``MODEL.FPN.IN_FEATURES``, with two levels more from its coarsest output.

    That is P6 and P7 from P5 (not from C5, as Detectron2's RetinaNet has them).

    Raises:
        ConfigError: the bottom-up network does not give those features, in that order; or there
            are channels that a norm cannot do with.
    """
    problem = first_problem(_problems(bottom_up, cfg))
    if problem is not None:
        raise ConfigError(problem)
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    last_stride = bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride
    last_level = f"p{int(math.log2(last_stride))}"
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_CoarseLevels(out_channels, out_channels, in_feature=last_level),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _problems(bottom_up: Backbone, cfg: CfgNode) -> Iterator[str]:
    wanted, given = list(cfg.MODEL.FPN.IN_FEATURES), list(bottom_up.output_shape())
    if not wanted or wanted != [name for name in given if name in wanted]:
        yield (
            f"MODEL.FPN.IN_FEATURES is {wanted}, but must be of MODEL.RESNETS.OUT_FEATURES, "
            f"{given}, in its order"
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if cfg.MODEL.FPN.NORM == "GN" and channels % 32:
        yield (
            f"MODEL.FPN.NORM 'GN' needs a multiple of 32 channels, not {channels}; set "
            "MODEL.FPN.OUT_CHANNELS to one"
        )
