"""A trained detector for single images, as demos need it."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from PIL import Image

from ..data import DatasetError
from ..weights.checkpointer import load_weights
from .trainer import Trainer


class Predictor:
    """The model of a config with ``MODEL.WEIGHTS``; one image at a time, resized as for tests."""

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            UserError: the weights cannot be read.
        """
        self.model = Trainer.build_model(cfg).eval()
        load_weights(cfg, self.model)
        self.resize = ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST] * 2, max_size=cfg.INPUT.MAX_SIZE_TEST
        )
        self.image_format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """
        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            detections on the CPU, in pixels of the image.
        """
        height, width = image.shape[:2]
        pixels = convert_PIL_to_numpy(Image.fromarray(image), self.image_format)
        pixels = self.resize.get_transform(pixels).apply_image(pixels)
        tensor = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1).copy())
        inputs = {"image": tensor, "height": height, "width": width}
        return self.model([inputs])[0]["instances"].to("cpu")


def metadata_of(cfg: CfgNode) -> Metadata:
    """Metadata of the config's first data set, with its class names if they can be found."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        return MetadataCatalog.get("__no_data_set")
    metadata = MetadataCatalog.get(names[0])
    if metadata.get("thing_classes") is None and names[0] in DatasetCatalog.list():
        try:
            DatasetCatalog.get(names[0])  # some sets know their classes only when loaded
        except (OSError, DatasetError):
            pass  # not on this machine: detections have numbers for names
    return metadata
