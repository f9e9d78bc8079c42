"""The detector: images to losses or detections."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..config.model_rules import check_model_config
from ..config.rules import ConfigError, unknown_name
from ..structures import Predictions, Priors
from .batch_checks import check_ground_truths, check_images, image_name
from .compilation import Compilation
from .criterion import (
    SummedCriterion,
    build_criteria,
    evaluate_criteria,
    mean_over_workers,
)
from .criterion.normalization import Normalizer
from .freezing import freeze
from .head import build_heads
from .inference import best_class_only, find_candidates, find_topk, keep_best
from .memory_layout import allows_channels_last
from .neck import build_neck


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
        head: nn.Module,
        prior_generator: DefaultAnchorGenerator,
        criteria: nn.ModuleList,
        in_features: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
        neck: nn.Module | None = None,
        aux_head: nn.Module | None = None,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        topk_only: bool = False,
        nms_thresh: float | None = None,
        nms_boxes: str = "",
        predictions: str = "main",
        one_class: bool = False,
        max_detections: int = 100,
        channels_last: bool = False,
        compile_backend: str | None = None,
        frozen: Sequence[str] = (),
        not_frozen: Sequence[str] = (),
    ):
        """
        Args:
            backbone: gives the feature maps ``in_features``, finest first.
            head: see ``HEAD_REGISTRY``.
            prior_generator: feature maps to one box per location and level, as Detectron2's
                anchor generators.
            criteria: see ``CRITERION_REGISTRY``.
            in_features: names of the feature maps for the head.
            pixel_mean, pixel_std: per channel; their number is that of the input's channels.
            neck: between feature maps and head, see ``NECK_REGISTRY``.
            aux_head: for training alone; its set "main" is called "aux", others "aux_<name>".
            score_thresh, topk_candidates: see ``find_candidates``.
            topk_only: detections by ``find_topk`` instead of ``find_candidates``.
            nms_thresh: IoU for class-wise NMS, or None for end-to-end detection.
            nms_boxes: the predicted boxes that decide in NMS: a name in ``Predictions.extra``, or
                "" for the boxes themselves.
            predictions: the head's set of predictions for inference.
            one_class: a location is detected as its best class alone.
            max_detections: per image.
            channels_last: keep weights and feature maps in PyTorch's channels_last format, if
                ``allows_channels_last``.
            compile_backend: of ``torch.compile`` for backbone and head; None: not compiled.
            frozen, not_frozen: see ``freeze``.
        """
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.aux_head = aux_head
        self.prior_generator = prior_generator
        self.criteria = criteria
        #: Figures of the last training step, scalars on the device; read them with the losses.
        self.figures: dict[str, Tensor] = {}
        #: What losses are divided by, see ``evaluate_criteria``; a trainer may set another.
        self.normalizer: Normalizer = mean_over_workers
        self.in_features = in_features
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.topk_only = topk_only
        self.nms_thresh = nms_thresh
        self.nms_boxes = nms_boxes
        self.predictions = predictions
        self.one_class = one_class
        self.max_detections = max_detections
        self.channels_last = channels_last and allows_channels_last(self)
        self._frozen = freeze(self, frozen, not_frozen)
        self.to(memory_format=self.memory_format)  # feature maps follow the images and weights
        self.compilation: Compilation | None = None
        if compile_backend is not None:
            parts = [part for part in (backbone, neck, head, aux_head) if part is not None]
            self.compilation = Compilation(parts, compile_backend)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_model_config(cfg)
        node = cfg.MODEL.DEFCN
        criteria = build_criteria(cfg)  # first: a mistake in them needs no backbone to be found

        # Parts, each made for the outputs of the one before it.
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        in_channels, strides = _channels_and_strides(cfg, shapes)
        neck = build_neck(cfg, in_channels, strides)
        prior_generator = build_prior_generator(cfg, strides)
        head, *others = build_heads(
            cfg,
            getattr(neck, "out_channels", in_channels),
            strides,
            prior_generator.num_anchors[0],
        )

        # Arguments of the constructor, the keys of inference last.
        return {
            "backbone": backbone,
            "neck": neck,
            "head": head,
            "aux_head": others[0] if others else None,
            "prior_generator": prior_generator,
            "criteria": criteria,
            "in_features": node.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "score_thresh": node.SCORE_THRESH_TEST,
            "topk_candidates": node.TOPK_CANDIDATES_TEST,
            "topk_only": node.TOPK_ONLY_TEST,
            "nms_thresh": node.NMS_THRESH_TEST if node.NMS_TYPE == "class_wise" else None,
            "nms_boxes": node.NMS_BOXES,
            "predictions": node.PREDICTIONS_TEST,
            "one_class": cfg.TEST.ONE_CLASS_PER_LOCATION,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "channels_last": node.CHANNELS_LAST,
            "frozen": node.FREEZE,
            "not_frozen": node.FREEZE_EXCEPT,
            "compile_backend": node.COMPILE.BACKEND if node.COMPILE.ENABLED else None,
        }

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and feature maps; no attribute, as it cannot be pickled."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "DeFCN":
        """As of every module, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's standard format: per image ``image`` (C, H, W) in the
                channel order of ``INPUT.FORMAT``, of any type of number; ``instances`` with
                ``gt_boxes`` and ``gt_classes`` for training; ``height``, ``width`` of the output.

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
        if self.training:
            priors, sets = self.predict_all(images.tensor)
            with torch.autocast(self.device.type, enabled=False):  # a matcher's own matmul, say
                return self.losses(priors, sets, batched_inputs)
        priors, predictions = self.predict(images.tensor)
        return self.outputs(priors, predictions, images.image_sizes, batched_inputs)

    def outputs(
        self,
        priors: Priors,
        predictions: Predictions,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict]:
        """The results of ``forward`` in inference, from the predictions of the batch."""
        return postprocess(self.detections(priors, predictions, image_sizes), batched_inputs)

    def detections(
        self, priors: Priors, predictions: Predictions, image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """The detections of every image, best first, in pixels of the input."""
        # Without NMS the best of all are among the best as many of every level.
        ranked = self.nms_thresh is None and not predictions.centerness
        limit = self.max_detections if ranked else None
        candidates = self.raw_detections(priors, predictions, image_sizes, limit)
        return [keep_best(found, self.max_detections, self.nms_thresh) for found in candidates]

    def raw_detections(
        self,
        priors: Priors,
        predictions: Predictions,
        image_sizes: list[tuple[int, int]],
        limit: int | None = None,
    ) -> list[Instances]:
        """The detections of every image before NMS (if any) and the limit on their number.

        Args:
            limit: so many of every level are enough.
        """
        if self.topk_only:
            return find_topk(predictions, image_sizes, topk=self.max_detections)
        return find_candidates(
            predictions,
            priors.level_sizes,
            image_sizes,
            score_thresh=self.score_thresh,
            topk=self.topk_candidates if limit is None else min(limit, self.topk_candidates),
            nms_boxes=self.nms_boxes,
        )

    def predict(self, images: Tensor) -> tuple[Priors, Predictions]:
        """Priors and predictions of inference.

        Args:
            images: (N, C, H, W) float, normalised and padded.
        """
        priors, features = self.features(images)
        return priors, self.for_inference(self._run(self.head, features, priors))

    def for_inference(self, sets: dict[str, Predictions]) -> Predictions:
        """The set, of those of the head, that detections come from."""
        if self.predictions not in sets:
            key = "MODEL.DEFCN.PREDICTIONS_TEST"
            raise ConfigError(unknown_name(key, self.predictions, sets))
        predictions = sets[self.predictions]
        return best_class_only(predictions) if self.one_class else predictions

    def predict_all(self, images: Tensor) -> tuple[Priors, dict[str, Predictions]]:
        """Priors and all sets of predictions, those that only training needs included.

        Args:
            images: as of ``predict``.
        """
        priors, features = self.features(images)
        sets = dict(self._run(self.head, features, priors))
        if self.aux_head is not None:
            for name, predictions in self._run(self.aux_head, features, priors).items():
                sets["aux" if name == "main" else f"aux_{name}"] = predictions
        return priors, sets

    def features(self, images: Tensor) -> tuple[Priors, list[Tensor]]:
        """The priors, and the feature maps (N, C, H_l, W_l) for the head."""
        images = images.contiguous(memory_format=self.memory_format)  # (N, C, H, W)
        maps = self._run(self.backbone, images)
        features = [maps[name] for name in self.in_features]
        if self.neck is not None:
            features = self._run(self.neck, features)
        return self.priors(features), features

    def priors(self, features: list[Tensor]) -> Priors:
        """The priors of feature maps of these sizes."""
        boxes = [level.tensor for level in self.prior_generator(features)]  # (R_l, 4) each
        strides = self.prior_generator.strides
        # the sizes are shapes, not len(): torch.export keeps those symbolic
        return Priors(
            boxes=torch.cat(boxes),
            strides=torch.cat([x.new_full(x.shape[:1], s) for x, s in zip(boxes, strides)]),
            level_sizes=[level.shape[0] for level in boxes],
            level_shapes=[(level.shape[2], level.shape[3]) for level in features]
            if self.prior_generator.num_anchors[0] == 1
            else None,
        )

    def _run(self, module: nn.Module, *inputs: Any) -> Any:
        return module(*inputs) if self.compilation is None else self.compilation(module, *inputs)

    def losses(
        self, priors: Priors, sets: dict[str, Predictions], batched_inputs: list[dict]
    ) -> dict[str, Tensor]:
        """The losses of all criteria; their figures are ``self.figures`` then.

        NaN if any prediction is not finite: matchers leave such locations out, and training has to
        end with Detectron2's FloatingPointError all the same.
        """
        check_ground_truths(batched_inputs, sets["main"].cls_logits.shape[2])
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        losses = evaluate_criteria(self.criteria, priors, sets, gt_instances, self.normalizer)
        self.figures = {}
        for criterion in self.criteria:
            assert isinstance(criterion, SummedCriterion)
            self.figures.update(criterion.metrics)
        faults = [predictions.nan_if_not_finite() for predictions in sets.values()]
        fault = torch.stack(faults).sum()
        return {name: loss + fault for name, loss in losses.items()}

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, pad them at the bottom and the right, and batch them."""
        check_images(batched_inputs, len(self.pixel_mean))
        dtype = self.pixel_mean.dtype
        images = [
            (x["image"].to(self.device, dtype) - self.pixel_mean) / self.pixel_std
            for x in batched_inputs
        ]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)


def postprocess(detections: list[Instances], batched_inputs: list[dict]) -> list[dict]:
    """Scale the detections to the output size of each input and clip them to it.

    Raises:
        FloatingPointError: a box or score is NaN or infinite.
    """
    results = []
    for i, (instances, x) in enumerate(zip(detections, batched_inputs)):
        # boxes and scores of all detections, (D, 5)
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


def build_prior_generator(cfg: CfgNode, strides: list[int]) -> DefaultAnchorGenerator:
    """The priors of a config, as many a location on every level.

    A point is one square prior whose side is the stride; anchors are those of
    ``MODEL.ANCHOR_GENERATOR``.
    """
    generator, ratios = cfg.MODEL.ANCHOR_GENERATOR, [[1.0]]
    if cfg.MODEL.DEFCN.PRIORS == "points":
        sizes = [[stride] for stride in strides]
    else:
        sizes, ratios = generator.SIZES, generator.ASPECT_RATIOS
        numbers = {len(x) for x in sizes}
        if len(sizes) not in (1, len(strides)) or len(numbers) != 1 or len(ratios) != 1:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.SIZES {sizes} with ASPECT_RATIOS {ratios} is not one "
                f"list of anchors a level, all as long, on {len(strides)} levels; give so many "
                "lists of sizes, and one list of ratios"
            )
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=strides, offset=0.5)


def _channels_and_strides(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> tuple[int, list[int]]:
    """Channels and strides of the feature maps ``MODEL.DEFCN.IN_FEATURES``, finest first."""
    names = cfg.MODEL.DEFCN.IN_FEATURES
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ConfigError(
            f"MODEL.DEFCN.IN_FEATURES {missing} are not given by the backbone "
            f"{cfg.MODEL.BACKBONE.NAME!r}; it has: {', '.join(shapes)}"
        )
    channels = {shapes[name].channels for name in names}
    if len(channels) != 1:
        raise ConfigError(
            f"MODEL.DEFCN.IN_FEATURES {names} have different numbers of channels "
            f"({sorted(channels)}); take the levels of one FPN"
        )
    strides = [shapes[name].stride for name in names]
    if strides != sorted(set(strides)):
        raise ConfigError(
            f"MODEL.DEFCN.IN_FEATURES {names} have the strides {strides}, but must go from fine "
            "to coarse"
        )
    return channels.pop(), strides
