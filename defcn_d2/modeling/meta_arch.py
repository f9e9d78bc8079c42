"""The detector: images to losses or detections."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..config.model_rules import check_model_config
from ..structures import Predictions, Priors
from .batch_checks import check_ground_truths, check_images, image_name
from .box_ops import ltrb_to_boxes
from .compilation import Compilation
from .criterion import build_criteria, evaluate_criteria, mean_over_workers
from .criterion.normalization import Normalizer
from .head.dense import DeFCNHead
from .inference import find_candidates, find_topk, keep_best


@META_ARCH_REGISTRY.register()
class DeFCN(nn.Module):
    """End-to-end detection with a fully convolutional network (arXiv 2012.03544)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: DeFCNHead,
        prior_generator: nn.Module,
        criteria: nn.ModuleList,
        in_features: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        topk_only: bool = False,
        nms_thresh: float | None = None,
        max_detections: int = 100,
        channels_last: bool = False,
        compile_backend: str | None = None,
    ):
        """
        Args:
            backbone: gives the feature maps ``in_features``, finest first.
            head: see ``DeFCNHead``.
            prior_generator: feature maps to one box per location and level, as Detectron2's
                anchor generators.
            criteria: modules from (priors, predictions, ground truths) to a dict of losses.
            in_features: names of the feature maps for the head.
            pixel_mean, pixel_std: per channel; their number is that of the input's channels.
            score_thresh, topk_candidates: see ``find_candidates``.
            topk_only: detections by ``find_topk`` in place of ``find_candidates``.
            nms_thresh: IoU for class-wise NMS, or None for end-to-end detection.
            max_detections: per image.
            channels_last: keep weights and feature maps in PyTorch's channels_last format.
            compile_backend: of ``torch.compile`` for backbone and head; None: not compiled.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.prior_generator = prior_generator
        self.criteria = criteria
        #: What losses are divided by, see ``evaluate_criteria``; a trainer may set another.
        self.normalizer: Normalizer = mean_over_workers
        self.in_features = in_features
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.topk_only = topk_only
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # feature maps follow the images and weights
        self.compilation: Compilation | None = None
        if compile_backend is not None:
            self.compilation = Compilation([backbone, head], compile_backend)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_model_config(cfg)
        node = cfg.MODEL.DEFCN
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        missing = [name for name in node.IN_FEATURES if name not in shapes]
        if missing:
            raise ValueError(
                f"MODEL.DEFCN.IN_FEATURES {missing} are not given by the backbone "
                f"{cfg.MODEL.BACKBONE.NAME!r}; it has: {', '.join(shapes)}"
            )
        input_shape = [shapes[name] for name in node.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": DeFCNHead(cfg, input_shape),
            "prior_generator": build_prior_generator(cfg, [shape.stride for shape in input_shape]),
            "criteria": build_criteria(cfg),
            "in_features": node.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "score_thresh": node.SCORE_THRESH_TEST,
            "topk_candidates": node.TOPK_CANDIDATES_TEST,
            "topk_only": node.TOPK_ONLY_TEST,
            "nms_thresh": node.NMS_THRESH_TEST if node.NMS_TYPE == "class_wise" else None,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "channels_last": node.CHANNELS_LAST,
            "compile_backend": node.COMPILE.BACKEND if node.COMPILE.ENABLED else None,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's standard format: per image ``image`` (C, H, W) in the
                channel order of ``INPUT.FORMAT``, ``instances`` with ``gt_boxes`` and
                ``gt_classes`` for training, ``height`` and ``width`` of the output.

        Returns:
            losses in training; else per image ``{"instances": Instances}`` with ``pred_boxes``
            in pixels of the output, ``scores`` and ``pred_classes``, best first.

        Raises:
            BatchError: images or ground truth that ``batch_checks`` refuses; an empty batch, but
                for inference.
        """
        if not self.training and isinstance(batched_inputs, list) and not batched_inputs:
            return []
        images = self.preprocess_image(batched_inputs)
        priors, predictions = self.predict(images.tensor)
        if self.training:
            with torch.autocast(self.device.type, enabled=False):  # a matcher's own matmul, say
                return self.losses(priors, predictions, batched_inputs)
        if self.topk_only:
            detections = find_topk(
                predictions,
                images.image_sizes,
                centerness=self.head.quality_branch == "centerness",
                topk=self.max_detections,
            )
        else:
            # Without NMS the best of all are among the best as many of every level.
            ranked = self.nms_thresh is None and self.head.quality_branch != "centerness"
            limit = self.max_detections if ranked else None
            candidates = self.find_candidates(priors, predictions, images.image_sizes, limit)
            detections = [
                keep_best(found, self.max_detections, self.nms_thresh) for found in candidates
            ]
        return postprocess(detections, batched_inputs)

    def predict(self, images: Tensor) -> tuple[Priors, Predictions]:
        """
        Args:
            images: (N, C, H, W) float, normalised and padded.
        """
        images = images.contiguous(memory_format=self.memory_format)
        features = self._run(self.backbone, images)
        features = [features[name] for name in self.in_features]
        cls_logits, box_deltas, quality = self._run(self.head, features)
        boxes = self.prior_generator(features)
        # the sizes are shapes, not len(): torch.export keeps those symbolic
        priors = Priors(
            boxes=torch.cat([level.tensor for level in boxes]),
            strides=torch.cat(
                [
                    level.tensor.new_full(level.tensor.shape[:1], stride)
                    for level, stride in zip(boxes, self.head.strides)
                ]
            ),
            level_sizes=[level.tensor.shape[0] for level in boxes],
            level_shapes=[(level.shape[2], level.shape[3]) for level in features],
        )
        return priors, Predictions(
            cls_logits=_flatten(cls_logits),
            boxes=self._decode(_flatten(box_deltas), priors),
            quality_logits=None if quality is None else _flatten(quality).squeeze(-1),
        )

    def _run(self, module: nn.Module, inputs: Tensor | list[Tensor]) -> Any:
        return module(inputs) if self.compilation is None else self.compilation(module, inputs)

    def _decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """(N, R, 4) xyxy from distances or deltas (N, R, 4)."""
        if self.head.box_coding == "ltrb":
            if self.training:  # the sides of tiny boxes far from the origin keep their digits
                return ltrb_to_boxes(deltas.double(), priors.centers.double())
            return ltrb_to_boxes(deltas, priors.centers)
        transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        anchors = priors.boxes.repeat(deltas.shape[0], 1)
        return transform.apply_deltas(deltas.reshape(-1, 4), anchors).view_as(deltas)

    def losses(
        self, priors: Priors, predictions: Predictions, batched_inputs: list[dict]
    ) -> dict[str, Tensor]:
        """The losses of all criteria; their figures go to the event storage, if there is one.

        NaN if any prediction is not finite: matchers leave such locations out, and training has to
        end with Detectron2's FloatingPointError all the same.
        """
        check_ground_truths(batched_inputs, predictions.cls_logits.shape[2])
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        losses = evaluate_criteria(
            self.criteria, priors, predictions, gt_instances, self.normalizer
        )
        for criterion in self.criteria:
            for name, value in getattr(criterion, "metrics", {}).items():
                _put_scalar(name, value)
        fault = predictions.nan_if_not_finite()
        return {name: loss + fault for name, loss in losses.items()}

    def find_candidates(
        self,
        priors: Priors,
        predictions: Predictions,
        image_sizes: list[tuple[int, int]],
        limit: int | None = None,
    ) -> list[Instances]:
        """Raw detections of every image, before NMS (if any) and the limit on their number.

        ``limit``: so many of every level are enough.
        """
        return find_candidates(
            predictions,
            priors.level_sizes,
            image_sizes,
            centerness=self.head.quality_branch == "centerness",
            score_thresh=self.score_thresh,
            topk=self.topk_candidates if limit is None else min(limit, self.topk_candidates),
        )

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, pad them at the bottom and the right, and batch them."""
        check_images(batched_inputs, len(self.pixel_mean))
        images = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)


def postprocess(detections: list[Instances], batched_inputs: list[dict]) -> list[dict]:
    """Scale the detections to the output size of each input and clip them to it.

    Raises:
        FloatingPointError: a box or score is NaN or infinite.
    """
    results = []
    for i, (instances, x) in enumerate(zip(detections, batched_inputs)):
        values = torch.cat([instances.pred_boxes.tensor, instances.scores[:, None]], dim=1)
        if not values.isfinite().all():
            raise FloatingPointError(
                f"{image_name(i, x)}: predicted boxes or scores are infinite or NaN. The "
                "training has diverged, or the weights are damaged."
            )
        height = x.get("height", instances.image_size[0])
        width = x.get("width", instances.image_size[1])
        results.append({"instances": detector_postprocess(instances, height, width)})
    return results


def build_prior_generator(cfg: CfgNode, strides: list[int]) -> nn.Module:
    """One square prior per location: a point's side is its stride, an anchor's is in the config."""
    kind = cfg.MODEL.DEFCN.PRIORS
    if kind == "points":
        sizes = [[stride] for stride in strides]
    elif kind == "anchors":
        sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
        ratios = cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
        if [len(x) for x in sizes] != [1] * len(strides) or ratios != [[1.0]]:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.SIZES {sizes} with ASPECT_RATIOS {ratios} is not one "
                f"square anchor per location on {len(strides)} levels; "
                "give one size a level and ASPECT_RATIOS [[1.0]]"
            )
    else:
        raise ValueError(f"MODEL.DEFCN.PRIORS {kind!r} is unknown; one of: anchors, points")
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[[1.0]], strides=strides, offset=0.5)


def _flatten(levels: list[Tensor]) -> Tensor:
    """Per level (N, C, H_l, W_l) to (N, R, C), row-major within a level, in float32 or wider.

    Channels stay where they are in memory, inside or outside: a copy, but no transposition.
    Mixed precision ends here: matching, losses and inference come after.
    """
    if all(x.is_contiguous(memory_format=torch.channels_last) for x in levels):
        flat = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
    else:
        flat = torch.cat([x.flatten(2) for x in levels], dim=2).transpose(1, 2)
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat


def _put_scalar(name: str, value: Tensor) -> None:
    try:
        storage = get_event_storage()
    except AssertionError:  # outside a trainer; v0.5 has no has_event_storage()
        return
    storage.put_scalar(name, value.item())
