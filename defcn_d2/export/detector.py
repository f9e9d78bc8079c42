"""A detector as a fixed sequence of standard operators: images in, the best k detections out."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.export import Dim

from ..modeling.meta_arch import DeFCN
from ..structures import Predictions
from .preparation import fold_batch_norms, to_half

Outputs = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, k, 4), scores (N, k), classes (N, k)."""

_NEVER = -1e4
"""A logit whose probability is 0 in float32."""


class DeployedDetector(nn.Module):
    """``DeFCN`` for deployment: preprocessing and top-k inside, no NMS, no branches, no lists.

    It holds a copy of the model's weights, on the CPU, in inference mode.

    Attributes:
        topk: k, detections an image; the same for every image.
        strides: of the levels in pixels, finest first.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    output_names = ("boxes", "scores", "classes")

    def __init__(
        self,
        model: DeFCN,
        topk: int,
        resize: tuple[int, int] | None = None,
        half: bool = False,
    ):
        """
        Args:
            model: a trained detector.
            topk: detections an image.
            resize: (height, width) in pixels that the images are stretched to, bilinearly and
                without antialiasing; None: they are taken as they are.
            half: compute in float16, except for preprocessing, normalisations, scores and boxes.
        """
        super().__init__()
        detector = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        detector.criteria, detector.aux_head = nn.ModuleList(), None
        for name in getattr(detector.head, "training_only", ()):
            setattr(detector.head, name, None)
        detector.to(memory_format=torch.contiguous_format)
        step = self.divisibility = max(detector.backbone.size_divisibility, 1)
        with torch.no_grad():  # the smallest image
            smallest = torch.zeros(1, len(detector.pixel_mean), step, step)
            priors, predictions = detector.predict(smallest)
        self.strides = [int(stride) for stride in priors.level_strides]
        self.num_classes: int = predictions.cls_logits.shape[2]
        #: Locations that no image has: the smallest one gives k detections with them.
        self.extra_locations = max(0, math.ceil(topk / self.num_classes) - len(priors))
        fold_batch_norms(detector)
        detector.prior_generator = GridPriors(detector.prior_generator)
        if half:
            for part in (detector.backbone, detector.neck, detector.head):
                if part is not None:
                    to_half(part)
        self.detector = detector
        self.dtype = torch.float16 if half else torch.float32
        self.topk = topk
        self.resize = resize
        self.register_buffer("pixel_mean", detector.pixel_mean.clone())
        self.register_buffer("pixel_std", detector.pixel_std.clone())
        self.eval()

    def forward(self, images: Tensor) -> Outputs:
        """
        Args:
            images: (N, C, H, W) float32, values 0..255, channels in the order of INPUT.FORMAT;
                any N, H and W of at least 1.

        Returns:
            boxes (N, k, 4) float32, xyxy in pixels of ``images``, within the image;
            scores (N, k) float32, descending; classes (N, k) int64. An image with fewer than k
            candidates ends with boxes of score 0, which are none.
        """
        _, predictions = self.detector.predict(self._preprocess(images).to(self.dtype))
        return self.choose(predictions, images)

    def choose(self, predictions: Predictions, images: Tensor) -> Outputs:
        """The outputs of ``forward``, of the head's predictions."""
        boxes = predictions.boxes.float()
        if predictions.quality_logits is not None:
            return self.best(predictions.scores(), boxes, images)
        # the sigmoid keeps the order: it is computed for the best alone
        boxes, logits, classes = self.best(predictions.cls_logits, boxes, images, _NEVER)
        return boxes, logits.sigmoid(), classes

    def best(self, scores: Tensor, boxes: Tensor, images: Tensor, lowest: float = 0.0) -> Outputs:
        """The outputs of ``forward``, of scores (N, R, K) and boxes (N, R, 4).

        Args:
            lowest: the score of what no image has.
        """
        if self.extra_locations:
            scores = F.pad(scores, (0, 0, 0, self.extra_locations), value=lowest)
            boxes = F.pad(boxes, (0, 0, 0, self.extra_locations))
        values, indices = scores.flatten(1).topk(self.topk)
        locations = indices // self.num_classes
        boxes = boxes.gather(1, locations.unsqueeze(-1).expand(-1, -1, 4))
        return self._in_pixels(boxes, images), values, indices - locations * self.num_classes

    def example(self) -> Tensor:
        """Two images of several cells a level, whose sides differ and divide by nothing."""
        coarsest = max(self.strides)
        height, width = 2 * coarsest + 13, 3 * coarsest - 21
        generator = torch.Generator().manual_seed(0)
        return 255 * torch.rand(2, len(self.pixel_mean), height, width, generator=generator)

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        """The sizes of the input that are free, as ``torch.export`` takes them."""
        return {"images": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}}

    def detections(self, outputs: list[Tensor], images: Tensor) -> Outputs:
        """The outputs of the graph themselves: they are detections already."""
        boxes, scores, classes = outputs
        return boxes, scores, classes

    def _preprocess(self, images: Tensor) -> Tensor:
        """Stretch, normalise, and pad at the bottom and the right to the size divisibility."""
        if self.resize is not None:
            images = F.interpolate(images, self.resize, mode="bilinear", align_corners=False)
        images = (images - self.pixel_mean) / self.pixel_std
        step = self.divisibility
        height, width = images.shape[2], images.shape[3]
        bottom = (height + step - 1) // step * step - height
        right = (width + step - 1) // step * step - width
        return F.pad(images, (0, right, 0, bottom))

    def _in_pixels(self, boxes: Tensor, images: Tensor) -> Tensor:
        """Boxes of the stretched image in pixels of the given one, clipped to it."""
        # sums of ones: the only way to a size as a tensor that all exporters keep dynamic
        width = torch.ones_like(images[0, 0, 0]).sum()
        height = torch.ones_like(images[0, 0, :, 0]).sum()
        limits = torch.stack([width, height, width, height])
        if self.resize is not None:
            boxes = boxes * (limits / limits.new_tensor([*self.resize[::-1], *self.resize[::-1]]))
        return torch.minimum(boxes.clamp(min=0), limits)


class GridPriors(nn.Module):
    """Priors as Detectron2's ``DefaultAnchorGenerator`` has them, A a location.

    Counted in whole cells, since an exporter makes nothing of the length of a range of floats.
    """

    def __init__(self, generator: Any):
        super().__init__()
        self.strides: list[int] = generator.strides
        self.num_anchors: list[int] = generator.num_anchors
        self.offset: float = generator.offset
        for level, cell in enumerate(generator.cell_anchors):
            self.register_buffer(f"cell{level}", cell.clone())

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """(N, C, H_l, W_l) per level to H_l * W_l * A boxes each, row-major, in pixels."""
        levels = []
        for level, (feature, stride) in enumerate(zip(features, self.strides)):
            rows, columns = feature.shape[2], feature.shape[3]
            y = (torch.arange(rows, device=feature.device) + self.offset) * stride
            x = (torch.arange(columns, device=feature.device) + self.offset) * stride
            y, x = y.unsqueeze(1).expand(rows, columns), x.expand(rows, columns)
            centers = torch.stack([x, y, x, y], dim=-1)
            boxes = centers.unsqueeze(2) + getattr(self, f"cell{level}")  # (H, W, A, 4)
            levels.append(Boxes(boxes.flatten(0, 2)))
        return levels
