"""Peak selection: detections without NMS of a detector that is trained one-to-many."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...config.rules import check_argument, numbers, one_of, whole_numbers
from ...ops import max_filter_3d, overlap_with_better
from ...structures import Predictions, Priors, fuse_logits
from .build import HEAD_REGISTRY
from .dense import DeFCNHead, conv3x3, flatten, tower

# Subtracted from the logits of what is no peak, where nothing is learned on top: a score of 0.
_NO_PEAK = 50.0
# How sharp the threshold of the IoU is that the selector learns, and how fast it moves.
_SOFTNESS, _SHIFT = 0.05, 0.3


@HEAD_REGISTRY.register()
class PeakHead(DeFCNHead):
    """The dense head, and a selector that keeps one of its predictions of each object.

    The set "one_to_many" is that of the dense head, for a criterion that assigns many locations to
    a ground truth. In "main", that of inference, each score is multiplied by the probability

        sigmoid(b + w * peak),  peak = 1 - 2 * sigmoid((overlap - t) / 0.05)

    where ``overlap`` is the IoU of the location's box with that of a neighbour that scores higher
    for the class (see ``overlap_with_better``): near t the location is no longer a peak, but the
    shadow of another. b, w and t are numbers of the location, by a small network on the features
    of the boxes. That network alone learns by the losses of "main": all its inputs are detached,
    so that one-to-one training does not disturb the features.

    A location is compared within a fixed window in space and scale: there is no sorting and no
    loop, and the graph has a fixed shape. It is a comparison all the same, made by the network;
    what follows from it is learned.
    """

    quality_branch_keys = {"main": ""}
    thins_out = "DeFCNHead"

    def __init__(
        self,
        *,
        compare: str = "overlap",
        iou_thresh: float = 0.6,
        tau: int = 2,
        selector: bool = True,
        select_convs: int = 2,
        peak_weight: float = 3.0,
        **shared: Any,
    ):
        """
        Args:
            compare: what ``peak`` is: by the "overlap", as above; 1 for the maximum of the whole
                "window" (see ``max_filter_3d``) and else -1; or 0, "none": there is no comparison,
                and the selector has to learn all (as PSS, arXiv 2101.11782).
            iou_thresh: t at the start.
            tau: neighbouring levels that take part, half of them on each side.
            selector: False: the comparison alone decides, with the probability 1 for a peak
                (``overlap`` below t) and 0 for the rest; nothing is learned, and any trained
                one-to-many detector will do.
            select_convs: convs of the selector before its last.
            peak_weight: w at the start; 3 leaves 95 % of a peak's score, 5 % of a shadow's.
        """
        super().__init__(**shared)
        check_argument("compare", compare, one_of("overlap", "window", "none"))
        check_argument("iou_thresh", iou_thresh, numbers("[0, 1]"))
        check_argument("tau", tau, _levels)
        check_argument("select_convs", select_convs, whole_numbers("[0, inf)"))
        check_argument("peak_weight", peak_weight, numbers("[0, inf)"))
        check_argument("num_anchors", self.num_anchors, _one_anchor)
        if compare == "none":
            check_argument("selector", selector, _needed_without_comparison)
        self.compare = compare
        self.iou_thresh = iou_thresh
        self.tau = tau
        self.selector = selector
        self.peak_weight = peak_weight
        if selector:
            channels = shared["in_channels"]
            norm, bias = shared.get("norm", "GN"), shared.get("conv_bias", True)
            self.select_subnet = tower(channels, select_convs, norm, bias)
            # b, w and t, of which a form without comparison needs the first alone
            self.select = conv3x3(channels, {"overlap": 3, "window": 2, "none": 1}[compare])

    def forward(self, features: list[Tensor], priors: Priors) -> dict[str, Predictions]:
        cls_features, box_features = self.towers(features)
        base = self.predictions(self.maps(cls_features, box_features), priors)
        logits = score_logits(base).detach()  # (N, R, K)
        boxes = base.boxes.detach()
        if self.selector:
            selected = fuse_logits(logits, self._selection(box_features, logits, boxes, priors))
        else:
            peaks = self._peak(logits, boxes, priors) > 0
            selected = torch.where(peaks, logits, logits - _NO_PEAK)
        main = Predictions(selected, boxes, extra={k: x.detach() for k, x in base.extra.items()})
        return {"one_to_many": base, "main": main}

    def _cls_logits(self, features: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(features.device.type):
            return super()._cls_logits(features)
        # rounded to half precision, the logits of neighbours would often be equal
        with torch.autocast(features.device.type, enabled=False):
            return super()._cls_logits(features.float())

    def _selection(
        self, box_features: list[Tensor], logits: Tensor, boxes: Tensor, priors: Priors
    ) -> Tensor:
        """The logits b + w * peak, (N, R, K) or, without comparison, (N, R, 1)."""
        levels = [self.select(self.select_subnet(x.detach())) for x in box_features]
        values = flatten(levels).split(1, dim=2)  # (N, R, 1) each
        if self.compare == "none":
            return values[0]
        shift = values[2] * _SHIFT if self.compare == "overlap" else 0.0
        return values[0] + (self.peak_weight + values[1]) * self._peak(logits, boxes, priors, shift)

    def _peak(
        self, logits: Tensor, boxes: Tensor, priors: Priors, shift: Tensor | float = 0.0
    ) -> Tensor:
        """(N, R, K) in [-1, 1].

        Args:
            logits: (N, R, K) float, without a gradient.
            boxes: (N, R, 4) xyxy.
            shift: (N, R, 1), added to t.
        """
        assert priors.level_shapes is not None
        if self.compare == "overlap":
            overlap = overlap_with_better(logits, boxes, priors.level_shapes, self.tau)
            return 1 - 2 * ((overlap - self.iou_thresh - shift) / _SOFTNESS).sigmoid()
        levels = [
            level.transpose(1, 2).unflatten(2, shape)  # (N, K, H_l, W_l)
            for level, shape in zip(logits.split(priors.level_sizes, dim=1), priors.level_shapes)
        ]
        maximum = flatten(max_filter_3d(levels, self.tau, 3))
        return torch.where(logits >= maximum, 1.0, -1.0)


def score_logits(predictions: Predictions) -> Tensor:
    """(N, R, K) float32 logits of ``Predictions.scores``."""
    if not predictions.centerness:
        return predictions.fused()
    assert predictions.quality_logits is not None
    quality = F.logsigmoid(predictions.quality_logits.float()).unsqueeze(-1)
    log_score = (F.logsigmoid(predictions.cls_logits.float()) + quality) / 2
    return log_score - torch.log(-torch.expm1(log_score))


def _levels(key: str, value: object) -> str | None:
    if value in (0, 2):
        return None
    return f"{key} is {value!r}, but must be 2 (the next finer and coarser levels) or 0 (none)"


def _one_anchor(key: str, value: int) -> str | None:
    if value == 1:
        return None
    return (
        f"{key} is {value}, but peaks are found on grids of one prior a location; set "
        "MODEL.DEFCN.PRIORS to 'points'"
    )


def _needed_without_comparison(key: str, value: bool) -> str | None:
    if value:
        return None
    return f"{key} is False and COMPARE 'none', so nothing would be selected; set one of them"
