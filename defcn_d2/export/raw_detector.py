"""A detector that ends at scores and boxes: for compilers without top-k, gather or free sizes."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..utils.errors import UserError
from .detector import DeployedDetector, Outputs


class RawDetector(nn.Module):
    """One image of a fixed size in, scores and boxes of all its locations out.

    Attributes:
        deployed: the detector, whose ``best`` makes detections of the outputs.
        size: (height, width) of the image in pixels.
    """

    output_names = ("scores", "boxes")

    def __init__(self, deployed: DeployedDetector, size: tuple[int, int]):
        """
        Args:
            deployed: a detector without ``resize``, which is copied.
            size: see above.

        Raises:
            UserError: the sides are no multiples of the size divisibility.
        """
        super().__init__()
        step = deployed.divisibility
        if min(size) < 1 or size[0] % step or size[1] % step:
            near = [max(step, round(side / step) * step) for side in size]
            raise UserError(
                f"--size is {size[0]} {size[1]}, but the model needs multiples of {step}: "
                f"give {near[0]} {near[1]}"
            )
        self.size = size
        self.deployed = copy.deepcopy(deployed)
        detector = self.deployed.detector
        with torch.no_grad():
            _, features = detector.features(self.example().to(deployed.dtype))
        detector.prior_generator = FixedPriors(detector.prior_generator, features)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: (1, C, H, W) float32 of ``size``, as of ``DeployedDetector``.

        Returns:
            scores (1, R, K) float32 in [0, 1] and boxes (1, R, 4) float32, xyxy in pixels, which
            may reach beyond the image.
        """
        deployed = self.deployed
        images = (images - deployed.pixel_mean) / deployed.pixel_std
        _, predictions = deployed.detector.predict(images.to(deployed.dtype))
        return predictions.scores(), predictions.boxes.float()

    def example(self) -> Tensor:
        """An image (1, C, H, W) of the only size there is."""
        return torch.zeros(1, len(self.deployed.pixel_mean), *self.size)

    def dynamic_shapes(self) -> None:
        """No size is free."""

    def detections(self, outputs: list[Tensor], images: Tensor) -> Outputs:
        """The best k detections of what the graph gives for ``images``."""
        scores, boxes = outputs
        return self.deployed.best(scores, boxes, images)


class FixedPriors(nn.Module):
    """The priors of one size of images, kept as they are."""

    def __init__(self, generator: Any, features: list[Tensor]):
        super().__init__()
        self.strides: list[int] = generator.strides
        self.num_anchors: list[int] = generator.num_anchors
        for level, boxes in enumerate(generator(features)):
            self.register_buffer(f"level{level}", boxes.tensor.contiguous())

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """The boxes of every level, whatever the maps."""
        return [Boxes(getattr(self, f"level{level}")) for level in range(len(self.strides))]


def fitted(image: Tensor, size: tuple[int, int], mean: Tensor) -> tuple[Tensor, float]:
    """An image (C, H, W) shrunk where it is too large, and padded to ``size`` with ``mean``.

    Returns:
        the image, and how many of its pixels one of the given image has become.
    """
    height, width = image.shape[1:]
    scale = min(1.0, size[0] / height, size[1] / width)
    if scale < 1:
        shrunk = (max(1, int(height * scale)), max(1, int(width * scale)))
        image = F.interpolate(image[None], shrunk, mode="bilinear", antialias=True)[0]
    padded = mean.expand(-1, *size).clone()
    padded[:, : image.shape[1], : image.shape[2]] = image
    return padded, scale
