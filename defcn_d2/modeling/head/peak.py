"""Peak selection: detections without NMS of a detector that is trained one-to-many."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.rules import check_argument, numbers, one_of, whole_numbers
from ...ops import max_filter_3d, overlap_peaks
from ...structures import Predictions, Priors, fuse_logits
from .build import HEAD_REGISTRY
from .dense import DeFCNHead, conv3x3, flatten, tower

# Subtracted from the logits of what is no peak, where nothing is learned on top: a score of 0.
_NO_PEAK = 50.0


@HEAD_REGISTRY.register()
class PeakHead(DeFCNHead):
    """The dense head, and a selector that keeps one of its predictions of each object.

    The set "one_to_many" is that of the dense head, for a criterion that assigns many locations to
    a ground truth. In "main", that of inference, each score is multiplied by the probability

        sigmoid(select + w * peak)

    where ``peak`` is 1 if no neighbour of the location scores higher for the class and -1
    otherwise, ``w`` is learned, and ``select`` is a small network on the features of the boxes. Of
    all this only ``select`` and ``w`` learn by the losses of "main": their other inputs are
    detached, so that one-to-one training does not disturb the features.

    A location is compared within a fixed window in space and scale: there is no sorting and no
    loop, and the graph has a fixed shape. It is a comparison all the same, made by the network and
    not learned by it.
    """

    quality_branch_keys = {"main": ""}

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
            compare: neighbours are those of the window whose boxes "overlap" the location's own,
                see ``overlap_peaks``; all in the "window", see ``max_filter_3d``; or "none": there
                is no comparison, and the selector has to learn all (as PSS, arXiv 2101.11782).
            iou_thresh: above which "overlap" takes two boxes to be of one object.
            tau: neighbouring levels that take part, half of them on each side.
            selector: False: the comparison alone decides; nothing is learned, and any trained
                one-to-many detector will do.
            select_convs: convs of ``select`` before its last.
            peak_weight: of w at the start; 3 leaves 95 % of a peak's score, 5 % of any other's.
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
        if selector:
            channels = shared["in_channels"]
            norm, bias = shared.get("norm", "GN"), shared.get("conv_bias", True)
            self.select_subnet = tower(channels, select_convs, norm, bias)
            self.select = conv3x3(channels, 1)
            self.peak_weight = nn.Parameter(torch.tensor([peak_weight]))

    def forward(self, features: list[Tensor], priors: Priors) -> dict[str, Predictions]:
        cls_features, box_features = self.towers(features)
        base = self.predictions(self.maps(cls_features, box_features), priors)
        return {"one_to_many": base, "main": self._selected(base, box_features, priors)}

    def _cls_logits(self, features: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(features.device.type):
            return super()._cls_logits(features)
        # rounded to half precision, the logits of neighbours would often be equal
        with torch.autocast(features.device.type, enabled=False):
            return super()._cls_logits(features.float())

    def _selected(
        self, base: Predictions, box_features: list[Tensor], priors: Priors
    ) -> Predictions:
        """The set "main": the logits of the base with the selection folded in, and its boxes."""
        logits = score_logits(base).detach()  # (N, R, K)
        boxes = base.boxes.detach()
        peaks = None if self.compare == "none" else self.peaks(logits, boxes, priors)
        if self.selector:
            levels = [self.select(self.select_subnet(x.detach())) for x in box_features]
            selection = flatten(levels)  # (N, R, 1)
            if peaks is not None:
                selection = selection + torch.where(peaks, self.peak_weight, -self.peak_weight)
            selected = fuse_logits(logits, selection)
        else:
            assert peaks is not None
            selected = torch.where(peaks, logits, logits - _NO_PEAK)
        return replace(
            base,
            cls_logits=selected,
            boxes=boxes,
            quality_logits=None,
            centerness=False,
            extra={name: value.detach() for name, value in base.extra.items()},
        )

    def peaks(self, logits: Tensor, boxes: Tensor, priors: Priors) -> Tensor:
        """(N, R, K) bool: no neighbour has a higher logit of the class.

        Args:
            logits: (N, R, K) float, without a gradient.
            boxes: (N, R, 4) xyxy.
        """
        assert priors.level_shapes is not None
        if self.compare == "overlap":
            return overlap_peaks(logits, boxes, priors.level_shapes, self.iou_thresh, self.tau)
        levels = [
            level.transpose(1, 2).unflatten(2, shape)  # (N, K, H_l, W_l)
            for level, shape in zip(logits.split(priors.level_sizes, dim=1), priors.level_shapes)
        ]
        return logits >= flatten(max_filter_3d(levels, self.tau, 3))


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
