"""Hostile batches for ``tools/trust/fuzz.py``: a few words that make the same tensors again."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Generator, Tensor

from defcn_d2.modeling.batch_checks import MAX_COORDINATE
from defcn_d2.structures import Predictions, Priors
from fuzzing.faults import FAULTS, IMAGE_FAULTS, IMAGES, spoil_ground_truth, spoil_image
from fuzzing.values import BOXES, PREDICTIONS

STRIDES = (8, 16, 32, 64, 128)
ANCHOR_STRIDES = 4  # side of an anchor in strides, with Detectron2's sizes 32 ... 512
MAX_SIDE, MAX_GTS, MAX_CLASSES = 4000, 1000, 80
# A batch is held to so many pairs of ground truth and location, and so many logits.
MAX_PAIRS, MAX_LOGITS = 2**22, 2**21

Size = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """A batch.

    Attributes:
        seed: of all its random numbers.
        sizes: (height, width) of the images in pixels.
        counts: ground truths of each image.
        num_classes: K.
        boxes: a key of ``BOXES``, the ground truths.
        predictions: a key of ``PREDICTIONS``; "" for those of a network that looks at images.
        images: with a network, a key of ``IMAGES``; else "".
        fault: one of ``FAULTS`` or, with a network, of ``IMAGE_FAULTS``; mostly "".
        variant: the only one to try; "": all of them.
    """

    seed: int
    sizes: tuple[Size, ...]
    counts: tuple[int, ...]
    num_classes: int = 3
    boxes: str = "ordinary"
    predictions: str = "random"
    images: str = ""
    fault: str = ""
    variant: str = ""

    @property
    def labels(self) -> list[str]:
        """Its remarkable features, for tables."""
        names = {
            "ground truth": self.boxes,
            "predictions": self.predictions,
            "images": self.images,
            "fault": self.fault,
        }
        return [f"{name}: {value}" for name, value in names.items() if value]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Raises ``ValueError`` or ``TypeError`` where the text is no recipe."""
        values = json.loads(text)
        values["sizes"] = tuple((height, width) for height, width in values["sizes"])
        values["counts"] = tuple(values["counts"])
        return Recipe(**values)


def draw(seed: int, index: int, variants: list[str]) -> Recipe:
    """The recipe of this number in the sequence of a seed; one in 20 goes through a network."""
    rng = random.Random(f"{seed}/{index}")
    network = index % 20 == 0
    largest = 160 if network else rng.choice([400] * 9 + [MAX_SIDE])  # those take a second each
    sizes = tuple(
        (_log_uniform(rng, largest), _log_uniform(rng, largest)) for _ in range(rng.randint(1, 3))
    )
    locations = sum(rows * columns for rows, columns in level_shapes(sizes))
    most = max(MAX_LOGITS // (len(sizes) * locations), 1)
    num_classes = _log_uniform(rng, min(MAX_CLASSES, most))
    most = min(MAX_GTS, MAX_PAIRS // (len(sizes) * locations))
    counts = tuple(_log_uniform(rng, most + 1) - 1 for _ in sizes)
    faults = IMAGE_FAULTS if network and rng.random() < 0.5 else FAULTS
    return Recipe(
        seed=rng.randrange(2**32),
        sizes=sizes,
        counts=counts,
        num_classes=3 if network else num_classes,
        boxes=rng.choice(list(BOXES)),
        predictions="" if network else rng.choice(list(PREDICTIONS)),
        images=rng.choice(list(IMAGES)) if network else "",
        fault=rng.choice(faults) if rng.random() < (0.3 if network else 0.05) else "",
        variant=rng.choice(variants) if network else "",
    )


def _log_uniform(rng: random.Random, largest: int) -> int:
    """In [1, largest], every order of magnitude alike."""
    return min(int(math.exp(rng.uniform(0, math.log(largest + 1)))), largest)


def level_shapes(sizes: tuple[Size, ...]) -> list[Size]:
    """Rows and columns of every level, for a batch of images of these sizes."""
    padded = [math.ceil(max(side) / 32) * 32 for side in zip(*sizes)]
    return [(math.ceil(padded[0] / stride), math.ceil(padded[1] / stride)) for stride in STRIDES]


def make_priors(sizes: tuple[Size, ...], anchors: bool) -> Priors:
    """Points, or anchors, of all locations."""
    shapes = level_shapes(sizes)
    boxes, strides = [], []
    for (rows, columns), stride in zip(shapes, STRIDES):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centers = (torch.stack([x, y], dim=2).reshape(-1, 2) + 0.5) * stride
        reach = stride * (ANCHOR_STRIDES if anchors else 1) / 2
        boxes.append(torch.cat([centers - reach, centers + reach], dim=1))
        strides.append(torch.full((rows * columns,), float(stride)))
    sizes_of_levels = [rows * columns for rows, columns in shapes]
    return Priors(torch.cat(boxes), torch.cat(strides), sizes_of_levels, shapes)


def make_ground_truths(recipe: Recipe) -> list[Instances]:
    """Of every image; ``recipe.fault`` is not in it yet."""
    generator = Generator().manual_seed(recipe.seed)
    result = []
    for (height, width), count in zip(recipe.sizes, recipe.counts):
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = BOXES[recipe.boxes](count, limits, generator)
        classes = torch.randint(recipe.num_classes, (count,), generator=generator)
        result.append(Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=classes))
    return result


def make_inputs(recipe: Recipe) -> list[dict]:
    """The batch in Detectron2's format; without images where there is no network."""
    generator = Generator().manual_seed(recipe.seed + 1)
    inputs: list[dict] = []
    for gt in make_ground_truths(recipe):
        x = {"instances": gt, "file_name": f"{len(inputs)}.jpg"}
        if recipe.images:
            x["image"] = IMAGES[recipe.images](gt.image_size, generator)
        inputs.append(x)
    victim = recipe.seed % len(inputs)
    if recipe.fault in FAULTS:
        spoil_ground_truth(recipe.fault, inputs[victim], recipe.num_classes)
    elif recipe.fault == "no image":
        inputs.clear()
    elif recipe.fault:
        spoil_image(recipe.fault, inputs[victim])
    return inputs


def make_predictions(
    recipe: Recipe, priors: Priors, quality: bool, reg_max: int | None = None
) -> Predictions:
    """Leaves that want gradients; boxes in float64 where the priors are points, as in training.

    With ``reg_max`` there are logits of the distributions of the sides as well: ordinary ones, as
    faults have the others.
    """
    generator = Generator().manual_seed(recipe.seed + 2)
    shape = (len(recipe.sizes), len(priors))
    logits = torch.randn(*shape, recipe.num_classes + quality, generator=generator) * 2
    ltrb = torch.rand(*shape, 4, generator=generator) * 2 * priors.strides[:, None]
    logits, ltrb = PREDICTIONS[recipe.predictions](logits, ltrb, generator)
    points = bool(priors.boxes[0, 2] - priors.boxes[0, 0] == priors.strides[0])
    ltrb = ltrb.double() if points else ltrb
    centers = priors.centers.to(ltrb.dtype)
    boxes = torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], dim=-1)
    if recipe.predictions == "perfect":
        boxes = _aim_at_ground_truths(boxes, make_ground_truths(recipe))
    extra = {}
    if reg_max is not None:
        sides = torch.randn(*shape, 4 * (reg_max + 1), generator=generator) * 2
        extra["box_logits"] = sides.requires_grad_()
    return Predictions(
        cls_logits=logits[..., : recipe.num_classes].contiguous().requires_grad_(),
        boxes=boxes.requires_grad_(),
        quality_logits=logits[..., -1].contiguous().requires_grad_() if quality else None,
        extra=extra,
    )


def _aim_at_ground_truths(boxes: Tensor, gt_instances: list[Instances]) -> Tensor:
    """Every location predicts a ground truth exactly."""
    for i, gt in enumerate(gt_instances):
        if len(gt):
            picked = torch.arange(boxes.shape[1]) % len(gt)
            boxes[i] = gt.gt_boxes.tensor[picked].to(boxes.dtype)
    return boxes


def is_refused(recipe: Recipe) -> bool:
    """Whether a model has to refuse the batch, found value by value."""
    if recipe.fault:
        return True
    for gt in make_ground_truths(recipe):
        for x0, y0, x1, y1 in gt.gt_boxes.tensor.tolist():
            if not all(abs(value) <= MAX_COORDINATE for value in (x0, y0, x1, y1)):
                return True
            if x1 < x0 or y1 < y0:
                return True
    return False
