"""The detection head: the same small network on every level."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...config.rules import check_argument, norm_of, numbers, one_of, whole_numbers
from ...structures import Predictions, Priors
from ..box_ops import deltas_to_boxes, ltrb_to_boxes
from .build import HEAD_REGISTRY
from .max_filtering import MaxFiltering
from .norm import build_norm

# Quality branches of one convolution each, whose parameters bear their name.
_PLAIN_BRANCHES = ("centerness", "objectness")


class Scale(nn.Module):
    """A learnable factor, one number."""

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@HEAD_REGISTRY.register(default=["HEAD"])
class DeFCNHead(nn.Module):
    """Towers for classes and boxes, shared over the levels (method section 2).

    ``forward`` is made of four steps, each of which a subclass may override: ``towers``, ``maps``,
    ``predictions`` and ``decode``. The names of the parameters are those of the original release.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: list[int],
        num_classes: int,
        num_anchors: int = 1,
        num_convs: int = 4,
        norm: str = "GN",
        conv_bias: bool = True,
        prior_prob: float = 0.01,
        box_bias: float = 0.0,
        box_coding: str = "ltrb",
        norm_reg_targets: bool = True,
        quality_branch: str = "none",
        max_filtering: dict | None = None,
        head_checkpointing: bool = False,
    ):
        """
        Args:
            in_channels: of every feature map.
            strides: of the levels, in pixels, finest first.
            num_classes: K.
            num_anchors: priors a location, A.
            num_convs, norm, conv_bias: of each tower; ``norm`` as in ``get_norm``.
            prior_prob: class probability of every location before training.
            box_bias: of ``bbox_pred`` at the start of training with "ltrb": a box is that many
                strides from its location to each side, and one of size 0 may never grow, as the
                gradients of ReLU and of the GIoU are 0 there. With "deltas" boxes start as anchors.
            box_coding: "ltrb" (distances in pixels) or "deltas" (of Box2BoxTransform, no scales).
            norm_reg_targets: distances are relu(x) * stride; else exp(x).
            quality_branch: "none", "filter", "centerness" or "objectness"; all on the box tower.
            max_filtering: arguments of ``MaxFiltering`` besides the channels.
            head_checkpointing: keep the outputs of towers alone for the backward pass, which
                computes all between again (arXiv 1604.06174). Losses and gradients stay the same.
        """
        super().__init__()
        check_argument("num_classes", num_classes, whole_numbers("[1, inf)"))
        check_argument("num_convs", num_convs, whole_numbers("[0, inf)"))
        check_argument("norm", norm, norm_of(in_channels))
        check_argument("prior_prob", prior_prob, numbers("(0, 1)"))
        check_argument("box_bias", box_bias, numbers("[0, inf)"))
        check_argument("quality_branch", quality_branch, one_of("none", "filter", *_PLAIN_BRANCHES))
        self.strides = strides
        self.box_coding = box_coding
        self.norm_reg_targets = norm_reg_targets
        self.cls_subnet = tower(in_channels, num_convs, norm, conv_bias)
        self.bbox_subnet = tower(in_channels, num_convs, norm, conv_bias)
        self.cls_score = conv3x3(in_channels, num_anchors * num_classes)
        self.bbox_pred = conv3x3(in_channels, num_anchors * 4)
        if box_coding == "ltrb":
            self.scales = nn.ModuleList(Scale() for _ in strides)
        self.num_anchors = num_anchors
        self.quality_branch = quality_branch
        if quality_branch in _PLAIN_BRANCHES:
            self.add_module(quality_branch, conv3x3(in_channels, num_anchors))
        elif quality_branch == "filter":
            self.max3d = MaxFiltering(in_channels, **(max_filtering or {}))
            self.filter = conv3x3(in_channels, num_anchors)
        self.head_checkpointing = head_checkpointing
        if head_checkpointing:
            check_argument("head_checkpointing", self, _without_batch_norm)
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        assert self.bbox_pred.bias is not None
        nn.init.constant_(self.bbox_pred.bias, box_bias if box_coding == "ltrb" else 0.0)

    def forward(self, features: list[Tensor], priors: Priors) -> dict[str, Predictions]:
        """
        Args:
            features: (N, C, H_l, W_l) per level, finest first.
            priors: R of all levels.

        Returns:
            sets of predictions by name; "main" is that of inference.
        """
        return {"main": self.predictions(self.maps(*self.towers(features)), priors)}

    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features for classes and for boxes, (N, C, H_l, W_l) per level each."""
        return (
            [self._recomputed(self.cls_subnet, x) for x in features],
            [self._recomputed(self.bbox_subnet, x) for x in features],
        )

    def maps(
        self, cls_features: list[Tensor], box_features: list[Tensor]
    ) -> dict[str, list[Tensor]]:
        """
        Returns:
            per level ``cls_logits`` (N, A * K, H_l, W_l), ``boxes`` (N, A * 4, H_l, W_l) distances
            in pixels or deltas, and ``quality_logits`` (N, A, H_l, W_l) where there is such a
            branch. Maps by other names become ``Predictions.extra``.
        """
        maps = {
            "cls_logits": [self._cls_logits(x) for x in cls_features],
            "boxes": [self._box_deltas(x, level) for level, x in enumerate(box_features)],
        }
        if self.quality_branch in _PLAIN_BRANCHES:
            branch = self.get_submodule(self.quality_branch)
            maps["quality_logits"] = [branch(x) for x in box_features]
        elif self.quality_branch == "filter":
            maps["quality_logits"] = self._recomputed(self._filter_logits, box_features)
        return maps

    def predictions(self, maps: dict[str, list[Tensor]], priors: Priors) -> Predictions:
        """The maps flattened to (N, R, channels), and the boxes decoded."""
        flat = {name: flatten(levels, self.num_anchors) for name, levels in maps.items()}
        quality = flat.pop("quality_logits", None)
        return Predictions(
            cls_logits=flat.pop("cls_logits"),
            boxes=self.decode(flat.pop("boxes"), priors),
            quality_logits=None if quality is None else quality.squeeze(-1),
            centerness=self.quality_branch == "centerness",
            extra=flat,
        )

    def decode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """(N, R, 4) xyxy from distances or deltas (N, R, 4)."""
        if self.box_coding == "ltrb":
            if self.training:  # the sides of tiny boxes far from the origin keep their digits
                return ltrb_to_boxes(boxes.double(), priors.centers.double())
            return ltrb_to_boxes(boxes, priors.centers)
        return deltas_to_boxes(boxes, priors.boxes)

    def _cls_logits(self, features: Tensor) -> Tensor:
        return self.cls_score(features)  # (N, A * K, H, W)

    def _filter_logits(self, box_features: list[Tensor]) -> list[Tensor]:
        return [self.filter(x) for x in self.max3d(box_features)]

    def _recomputed(self, function: Callable[[Any], Any], features: Tensor | list[Tensor]) -> Any:
        """``function(features)``, which the backward pass calls again if ``head_checkpointing``."""
        if not (self.head_checkpointing and torch.is_grad_enabled()):
            return function(features)
        # the reentrant one would make DistributedDataParallel see shared weights as ready twice;
        # nothing here draws random numbers, whose state need not be kept
        return checkpoint(function, features, use_reentrant=False, preserve_rng_state=False)

    def _box_deltas(self, features: Tensor, level: int) -> Tensor:
        deltas = self.bbox_pred(features)  # (N, A * 4, H_l, W_l)
        if self.box_coding != "ltrb":
            return deltas
        deltas = self.scales[level](deltas)
        if self.norm_reg_targets:
            return torch.relu(deltas) * self.strides[level]
        return torch.exp(deltas)


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution with weights from N(0, 0.01) and bias 0."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def tower(channels: int, num_convs: int, norm: str, bias: bool) -> nn.Sequential:
    """``num_convs`` times conv3x3, norm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(conv3x3(channels, channels, bias))
        normalisation = build_norm(norm, channels)
        if normalisation is not None:
            layers.append(normalisation)
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def flatten(levels: list[Tensor], num_anchors: int = 1) -> Tensor:
    """Per level (N, A * C, H_l, W_l) to (N, R, C), row-major within a level, in float32 or wider.

    Channels stay where they are in memory, inside or outside: a copy, but no transposition.
    Mixed precision ends here: matching, losses and inference come after.
    """
    if all(x.is_contiguous(memory_format=torch.channels_last) for x in levels):
        flat = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)  # (N, R / A, A * C)
    else:
        flat = torch.cat([x.flatten(2) for x in levels], dim=2).transpose(1, 2)
    if num_anchors > 1:  # the anchors of a location follow each other, as in Priors
        flat = flat.reshape(flat.shape[0], flat.shape[1] * num_anchors, -1)
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat


def _without_batch_norm(key: str, head: nn.Module) -> str | None:
    if not any(isinstance(module, _BatchNorm) for module in head.modules()):
        return None
    return (
        f"{key} is True, but MODEL.DEFCN.NORM or MAX_FILTERING.NORM has statistics of batches, "
        "which computing twice would count twice; set them to 'GN' or '', or it to False"
    )
