"""Outputs that a head might give for an image with many objects, the same for every detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor

from benchmarks import detectors
from benchmarks.op_competitors import pyramid_shapes
from defcn_d2.modeling.meta_arch import DeFCN

STRIDES = (8, 16, 32, 64, 128)
NUM_ANCHORS = 9  # a location, of RetinaNet
BACKGROUND_LOGIT = -5.0
CERTAIN = 30.0  # a logit of probability 1 in float32
MAPS = ("cls_logits", "boxes", "quality_logits")  # of a head of this project


@dataclass(frozen=True)
class Scene:
    """Outputs per level for one image, before any decoding.

    Attributes:
        image: (height, width).
        cls_logits: (1, K, H_l, W_l).
        ltrb: (1, 4, H_l, W_l) distances in pixels.
    """

    image: tuple[int, int]
    cls_logits: list[Tensor]
    ltrb: list[Tensor]

    @property
    def share_above(self) -> float:
        """Share of the pairs of location and class whose score is above 0.05."""
        logits = torch.cat([level.flatten() for level in self.cls_logits])
        return (logits.sigmoid() > 0.05).float().mean().item()


def make_scene(image: tuple[int, int], objects: int, device: str = "cpu") -> Scene:
    """Noisy logits, some 2 % of them above the threshold, and higher ones where objects are.

    Each object raises one class at the 3 x 3 locations around a random cell of a random level,
    the finer ones more often, and these agree on its box.
    """
    generator = torch.Generator().manual_seed(objects)
    shapes = pyramid_shapes(*image)
    cls_logits = [
        BACKGROUND_LOGIT + torch.randn(1, detectors.NUM_CLASSES, *shape, generator=generator)
        for shape in shapes
    ]
    ltrb = [
        (1 + 3 * torch.rand(1, 4, *shape, generator=generator)) * stride
        for shape, stride in zip(shapes, STRIDES)
    ]
    areas = torch.tensor([height * width for height, width in shapes], dtype=torch.float32)
    levels = torch.multinomial(areas, objects, replacement=True, generator=generator).tolist()
    for level in levels:
        (height, width), stride = shapes[level], STRIDES[level]
        row, column, label = (
            int(torch.randint(limit, (), generator=generator))
            for limit in (height, width, detectors.NUM_CLASSES)
        )
        sides = (1.5 + 2 * torch.rand(4, generator=generator)) * stride
        for i in range(max(0, row - 1), min(height, row + 2)):
            for j in range(max(0, column - 1), min(width, column + 2)):
                offset = torch.tensor([j - column, i - row, column - j, row - i]) * stride
                cls_logits[level][0, label, i, j] = torch.randn((), generator=generator)
                ltrb[level][0, :, i, j] = sides + offset
    return Scene(image, [x.to(device) for x in cls_logits], [x.to(device) for x in ltrb])


class Playback:
    """A detector whose head has the scene's maps whatever the image: only what follows is left.

    A call gives its detections. Each wants outputs of its own, as Detectron2's FCOS overwrites
    them: ``prepare`` makes those of the next call beforehand.
    """

    def __init__(self, model: Any, scene: Scene):
        """
        Args:
            model: any detector; its backbone and head run no more.
        """
        self._model = model.eval()
        self._outputs = _outputs(model, scene)
        self._prepared: tuple[list[Tensor], ...] | None = None
        device = scene.cls_logits[0].device
        names = model.in_features if isinstance(model, DeFCN) else model.head_in_features
        features = {
            name: logits.new_empty(1, 1, *logits.shape[2:])
            for name, logits in zip(names, scene.cls_logits)
        }
        images = ImageList(torch.empty(1, 3, 1, 1, device=device), [scene.image])
        height, width = scene.image
        self._inputs = [{"image": images.tensor[0], "height": height, "width": width}]
        model.preprocess_image = lambda inputs: images
        model.backbone.forward = lambda tensor: features
        if isinstance(model, DeFCN):
            model.head.towers = lambda features: (features, features)
            model.head.maps = lambda *features: dict(zip(MAPS, self._head()))
        else:
            model.head.forward = self._head

    def prepare(self) -> None:
        """Copy the outputs of the head."""
        self._prepared = tuple([level.clone() for level in levels] for levels in self._outputs)

    def __call__(self) -> Instances:
        """Detections in the image."""
        return self._model(self._inputs)[0]["instances"]

    def _head(self, *features: list[Tensor]) -> tuple[list[Tensor], ...]:
        if self._prepared is None:
            self.prepare()
        outputs, self._prepared = self._prepared, None
        assert outputs is not None
        return outputs


def _outputs(model: Any, scene: Scene) -> tuple[list[Tensor], ...]:
    """In the form of the detector's own head."""
    certain = [torch.full_like(level[:, :1], CERTAIN) for level in scene.cls_logits]
    if isinstance(model, DeFCN):
        branch = model.head.quality_branch != "none"
        return (scene.cls_logits, scene.ltrb, *([certain] if branch else []))
    if hasattr(model.head, "ctrness"):
        deltas = [level / stride for level, stride in zip(scene.ltrb, STRIDES)]
        return scene.cls_logits, deltas, certain
    generator = torch.Generator().manual_seed(1)
    logits = [
        torch.cat([level.roll(anchor, dims=3) for anchor in range(NUM_ANCHORS)], dim=1)
        for level in scene.cls_logits
    ]
    deltas = []
    for level in scene.ltrb:
        shape = (1, 4 * NUM_ANCHORS, *level.shape[2:])
        deltas.append(0.3 * torch.randn(shape, generator=generator).to(level.device))
    return logits, deltas


def spread_scores(model: Any, inputs: list[dict]) -> None:
    """Give a detector with random weights the scores of ``make_scene``, and boxes with an area."""
    seen: list[Tensor] = []
    hook = model.head.cls_score.register_forward_hook(
        lambda module, args, output: seen.append(output.flatten().clone())
    )
    with torch.no_grad():
        model.eval()(inputs)
    hook.remove()
    logits = torch.cat(seen)
    mean, deviation = logits.mean().item(), logits.std().item()
    if not math.isfinite(mean) or deviation == 0:
        raise AssertionError(f"logits of mean {mean} and deviation {deviation}")
    with torch.no_grad():
        model.head.cls_score.weight /= deviation
        model.head.cls_score.bias.sub_(mean).div_(deviation).add_(BACKGROUND_LOGIT)
        model.head.bbox_pred.bias.fill_(1.0)
