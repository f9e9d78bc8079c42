"""Detectors for deployment, ours and others, with random weights and as many candidates each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from benchmarks import detectors
from defcn_d2.config.load import load_config
from defcn_d2.export import DeployedDetector
from defcn_d2.structures import Predictions

#: Pairs of location and class of an image that score above ``THRESHOLD``, in every detector.
CANDIDATES = 1000
THRESHOLD = 0.05
#: Arguments of torchvision's detectors (the tests take fewer classes).
TORCHVISION_OPTIONS: dict[str, object] = {}
TORCHVISION = ("fcos_resnet50_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large")


@dataclass
class Peer:
    """A detector in PyTorch.

    Attributes:
        model: an eager module.
        inputs: what it takes: one image in its own form.
        after_head: the name of its method that follows the head.
        seconds: of that method, a number for each call.
    """

    model: Any
    inputs: Any
    after_head: str
    seconds: list[float] = field(default_factory=list)

    def __call__(self) -> Any:
        with torch.no_grad():
            return self.model(self.inputs)

    def time_after_head(self, clock: Callable[[], float]) -> None:
        """Note the seconds after the head in each call from now on."""
        method = getattr(self.model, self.after_head)

        @functools.wraps(method)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = clock()
            result = method(*arguments, **named)
            self.seconds.append(clock() - start)
            return result

        setattr(self.model, self.after_head, timed)


def build(name: str, image: Tensor) -> Peer:
    """A detector in inference mode whose scores are spread as those of the others.

    Args:
        name: a config of this project, a name of ``detectors`` or of ``TORCHVISION``.
        image: (3, H, W) float32, 0 to 255.
    """
    torch.manual_seed(0)
    if name in TORCHVISION:
        peer = _of_torchvision(name, image)
    elif name in (detectors.RETINANET, detectors.DETECTRON2_FCOS):
        of_retinanet = name == detectors.RETINANET
        method = "inference" if of_retinanet and _is_old() else "forward_inference"
        peer = Peer(detectors.build(name).eval(), _inputs(image), method)
    else:
        cfg = load_config(name, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
        cfg.merge_from_list(detectors.BACKBONE_OPTIONS)
        peer = Peer(build_model(cfg).eval(), _inputs(image), "detections")
        _set_statistics(peer.model.backbone)
    spread_scores(peer)
    return peer


class OneSize(DeployedDetector):
    """One of ours for export, with 100 detections of an image whose size is fixed.

    Options of the runtimes do the same to the graph of any size that the command writes.
    """

    def __init__(self, peer: Peer, image: Tensor):
        super().__init__(peer.model, topk=100)
        self.image = image[None]

    def example(self) -> Tensor:
        return self.image

    def dynamic_shapes(self) -> Any:
        return None


class Ending(nn.Module):
    """The end of an exported graph, after the head, on logits (1, R, K) and boxes (1, R, 4)."""

    def __init__(self, detector: DeployedDetector):
        super().__init__()
        self.detector = detector

    def forward(self, logits: Tensor, boxes: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        return self.detector.choose(Predictions(logits, boxes), images)


def is_ssd(model: Any) -> bool:
    """Whether its classes compete, background included."""
    return _head(model).columns > 0


# ------------------------------------------------------------------------- scores


def spread_scores(peer: Peer) -> None:
    """Give the logits deviation 1, and let ``CANDIDATES`` pairs score above ``THRESHOLD``.

    Biases of the last convolutions are shifted: those of all classes, or of the background where
    classes compete. Centerness is 1, and boxes have an area.
    """
    head = _head(peer.model)
    convs = head.classes
    logits = _seen(convs, peer)
    deviation = torch.cat([x.flatten() for x in logits]).std().item()
    if not math.isfinite(deviation) or deviation == 0:
        raise AssertionError(f"logits of deviation {deviation}")
    logits = [x / deviation for x in logits]
    with torch.no_grad():
        for conv in convs:
            conv.weight /= deviation
            conv.bias /= deviation
            if head.columns:
                conv.bias.view(-1, head.columns)[:, 0] += _background(logits, head.columns)
            else:
                conv.bias += _shift(torch.cat([x.flatten() for x in logits]))
        for conv in head.certain:
            conv.bias.fill_(30.0)  # a probability of 1 in float32
        for conv in head.boxes:
            conv.bias.fill_(1.0)


def passing(peer: Peer) -> int:
    """Pairs that score above the threshold for ``peer``'s image."""
    head = _head(peer.model)
    logits = _seen(head.classes, peer)
    if head.columns:
        return int((_probabilities(logits, head.columns, 0.0) > THRESHOLD).sum())
    return int((torch.cat([x.flatten() for x in logits]).sigmoid() > THRESHOLD).sum())


@dataclass
class _Head:
    """Last convolutions: of classes, of distances to the sides, of centerness.

    Attributes:
        columns: outputs of classes a box, the background first, if they compete; else 0.
    """

    classes: list[Any]
    boxes: list[Any] = field(default_factory=list)
    certain: list[Any] = field(default_factory=list)
    columns: int = 0


def _head(model: Any) -> _Head:
    head = model.head
    if hasattr(head, "cls_score"):  # ours, Detectron2's
        centerness = [head.ctrness] if hasattr(head, "ctrness") else []
        return _Head([head.cls_score], [head.bbox_pred], centerness)
    of_classes = head.classification_head
    if hasattr(of_classes, "module_list"):
        return _Head([m[-1] for m in of_classes.module_list], columns=of_classes.num_columns)
    if hasattr(head.regression_head, "bbox_ctrness"):
        of_boxes = head.regression_head
        return _Head([of_classes.cls_logits], [of_boxes.bbox_reg], [of_boxes.bbox_ctrness])
    return _Head([of_classes.cls_logits])


def _seen(convs: list[Any], call: Callable[[], Any]) -> list[Tensor]:
    """Outputs of these convolutions in one call."""
    seen: list[Tensor] = []
    hooks = [c.register_forward_hook(lambda m, args, y: seen.append(y.clone())) for c in convs]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def _shift(logits: Tensor) -> float:
    best = logits.topk(min(CANDIDATES + 1, len(logits))).values
    return math.log(THRESHOLD / (1 - THRESHOLD)) - best[-1].item()


def _background(logits: list[Tensor], columns: int) -> float:
    """By halving: the more background, the fewer pairs pass."""
    low, high = -100.0, 100.0
    for _ in range(50):
        middle = (low + high) / 2
        few = int((_probabilities(logits, columns, middle) > THRESHOLD).sum()) <= CANDIDATES
        low, high = (low, middle) if few else (middle, high)
    return high


def _probabilities(logits: list[Tensor], columns: int, background: float) -> Tensor:
    rows = [x[0].unflatten(0, (-1, columns)).movedim(1, 3).reshape(-1, columns) for x in logits]
    values = torch.cat(rows)
    values[:, 0] += background
    return values.softmax(dim=1)[:, 1:]


# ------------------------------------------------------------------------- models


def _inputs(image: Tensor) -> list[dict[str, Any]]:
    return [{"image": image, "height": image.shape[1], "width": image.shape[2]}]


def _is_old() -> bool:
    """Detectron2 v0.5, where there is no FCOS."""
    return detectors.DETECTRON2_FCOS not in detectors.names()


def _of_torchvision(name: str, image: Tensor) -> Peer:
    from torchvision.models import detection

    options: dict[str, Any] = {"score_thresh": THRESHOLD, **TORCHVISION_OPTIONS}
    if name.startswith("fcos"):
        options["score_thresh"] = math.sqrt(THRESHOLD)  # its scores are roots
    if "320" not in name:  # the image as it is
        options |= {"min_size": min(image.shape[1:]), "max_size": max(image.shape[1:])}
    model = getattr(detection, name)(weights=None, weights_backbone=None, **options).eval()
    _set_statistics(model.backbone)
    return Peer(model, [image / 255], "postprocess_detections")


@torch.no_grad()
def _set_statistics(backbone: nn.Module) -> None:
    """Statistics of batch norms from what passes, so that activations have a sane scale."""

    def measure(module: Any, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        module.running_mean.copy_(x.mean(dim=(0, 2, 3)))
        module.running_var.copy_(x.var(dim=(0, 2, 3), unbiased=False) + 1e-3)

    norms = [module for module in backbone.modules() if hasattr(module, "running_var")]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    backbone(torch.randn(1, 3, 256, 256))
    for hook in hooks:
        hook.remove()
