"""A trained detector in one line, for files and arrays of any Python program."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from ..config.load import expand_home, load_config
from ..data import DatasetError, register_datasets
from ..data.image_limit import ImageTooLarge, check_pixels
from ..data.image_reading import plain_image, read_image
from ..evaluation.stored_thresholds import AUTO, find_confidence
from ..modeling.meta_arch import DeFCN
from ..utils.errors import UserError, first_line
from ..weights.checkpointer import load_weights
from .cpu import use_cpu
from .trainer import Trainer

logger = logging.getLogger(__name__)

Picture = np.ndarray | Image.Image | str | os.PathLike

# What Pillow raises for a file that is no image, or half of one.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Predictor:
    """``Predictor("POTO-3DMF", "model_final.pth")("photo.jpg")`` gives the detections.

    Attributes:
        cfg: the frozen config of the model.
        model: in inference mode.
        resize: the augmentation that gives images their size for tests.
        confidence: least score of detections; None: that of the config alone.
        class_names: of the data it was trained on, by number; empty where they are not known.
    """

    def __init__(
        self,
        config: str | os.PathLike | CfgNode,
        weights: str | os.PathLike | None = None,
        *,
        device: str | None = None,
        opts: Sequence[str] = (),
        confidence: float | str | None = AUTO,
    ):
        """
        Args:
            config: a yaml file, such as the config.yaml of a run; the short name of a config that
                comes with the package, see ``config_names()``; or a config.
            weights: the trained model, a file; None: the config's ``MODEL.WEIGHTS``.
            device: as "cuda:1"; None: the config's ``MODEL.DEVICE``, or the CPU where that is a
                GPU and there is none.
            opts: KEY, VALUE, ... that change the config, flat and as text.
            confidence: least score of detections; "best": that of the best F1 in the weights' last
                evaluation (``thresholds.json``); "auto": the same where there is one; None: no
                limit beside the config's.

        Raises:
            UserError: a file that is missing or cannot be read, or a wrong key.
        """
        config_file = "" if isinstance(config, CfgNode) else os.path.expanduser(config)
        opts = [*opts]
        opts += ["MODEL.WEIGHTS", os.fspath(weights)] if weights is not None else []
        opts += ["MODEL.DEVICE", device] if device else []
        if isinstance(config, CfgNode):
            cfg = config.clone()
            cfg.defrost()
            cfg.merge_from_list(opts)
            expand_home(cfg)
            register_datasets(cfg)
            cfg.freeze()
        else:
            cfg = load_config(os.fspath(config), opts)
        path = cfg.MODEL.WEIGHTS
        if path and "://" not in path and not os.path.isfile(path):
            raise UserError(f"weights {path!r} do not exist; give the file of a trained model")
        no_gpu = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
        if device and no_gpu:
            raise UserError(f"device {device!r} is not there: no GPU that PyTorch can use")
        self.confidence, why = find_confidence(confidence, path, config_file)
        if why:
            logger.info("%s", why)
        if self.confidence is not None and self.confidence < cfg.MODEL.DEFCN.SCORE_THRESH_TEST:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEFCN.SCORE_THRESH_TEST = self.confidence
            cfg.freeze()
        self.cfg = cfg = use_cpu(cfg) if no_gpu or cfg.MODEL.DEVICE == "cpu" else cfg
        self.model = Trainer.build_model(cfg).eval()
        load_weights(cfg, self.model)
        self.resize = ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST] * 2, max_size=cfg.INPUT.MAX_SIZE_TEST
        )
        self.class_names: list[str] = list(metadata_of(cfg).get("thing_classes") or [])

    @overload
    def __call__(self, images: Picture) -> Instances: ...

    @overload
    def __call__(self, images: Sequence[Picture]) -> list[Instances]: ...

    def __call__(self, images: Picture | Sequence[Picture]) -> Instances | list[Instances]:
        """
        Args:
            images: a path, an array (H, W, 3) uint8 in BGR as ``cv2.imread`` gives it, or an image
                of Pillow; or a list of such.

        Returns:
            detections on the CPU, best first: ``pred_boxes`` xyxy in pixels of the image,
            ``scores`` and ``pred_classes``; of a list, a list.

        Raises:
            UserError: files that do not exist (all of them are named before any work), or one
                that cannot be read as an image or has more pixels than ``INPUT.MAX_PIXELS``.
            ValueError: an array of another shape or type, or an image that is none with 8 or 16
                bits.
        """
        if images is None or isinstance(images, (np.ndarray, Image.Image, str, os.PathLike)):
            single, pictures = True, cast("list[Picture]", [images])
        else:
            single, pictures = False, list(images)
        _check_paths([os.fspath(p) for p in pictures if isinstance(p, (str, os.PathLike))])
        for number, picture in enumerate(pictures):
            if not isinstance(picture, (Image.Image, str, os.PathLike)):
                _check_array(picture, "the image" if single else f"image {number} of the list")
        found = [self.detections(self._to_rgb(picture)) for picture in pictures]
        return found[0] if single else found

    @torch.no_grad()
    def detections(self, image: np.ndarray) -> Instances:
        """Detections of one (H, W, 3) uint8 array in RGB, on the CPU, best first."""
        found = self.model([self.inputs(image)])[0]["instances"].to("cpu")
        return found if self.confidence is None else found[found.scores >= self.confidence]

    def inputs(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input for (H, W, 3) uint8 in RGB: resized, in the order INPUT.FORMAT."""
        height, width = image.shape[:2]
        pixels = convert_PIL_to_numpy(Image.fromarray(image), self.cfg.INPUT.FORMAT)
        pixels = self.resize.get_transform(pixels).apply_image(pixels)
        tensor = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1).copy())
        return {"image": tensor, "height": height, "width": width}

    def _to_rgb(self, picture: Picture) -> np.ndarray:
        if isinstance(picture, np.ndarray):
            return np.ascontiguousarray(picture[:, :, ::-1])
        if isinstance(picture, Image.Image):
            return convert_PIL_to_numpy(plain_image(picture), "RGB")
        return read_rgb(picture, self.cfg.INPUT.MAX_PIXELS)


def require_defcn(model: nn.Module, what: str) -> DeFCN:
    """The model, where it is a DeFCN.

    Args:
        what: what needs it, the end of "only a DeFCN ...".

    Raises:
        UserError: it is another.
    """
    if not isinstance(model, DeFCN):
        raise UserError(f"the model is a {type(model).__name__}: only a DeFCN {what}")
    return model


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


def read_rgb(path: str | os.PathLike, max_pixels: int = 100_000_000) -> np.ndarray:
    """An image file as (H, W, 3) uint8 in RGB, turned upright as its EXIF data say.

    Args:
        max_pixels: ``INPUT.MAX_PIXELS``, whose default is the same.

    Raises:
        UserError: it is no image, or half of one, or has more pixels.
    """
    try:
        check_pixels(os.fspath(path), max_pixels)
        return read_image(os.fspath(path), "RGB")
    except ImageTooLarge as error:
        raise UserError(str(error)) from error
    except _UNREADABLE as error:
        name = os.fspath(path)
        raise UserError(f"{name!r} cannot be read as an image ({first_line(error)})") from error


def _check_paths(paths: Sequence[str]) -> None:
    missing = [path for path in paths if "://" not in path and not Path(path).is_file()]
    if missing:
        names = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"{len(missing)} of {len(paths)} images do not exist: {names}")


def _check_array(picture: object, name: str) -> None:
    if picture is None:
        raise ValueError(f"{name} is None: cv2.imread gives that for a file it cannot read")
    if not isinstance(picture, np.ndarray):
        raise ValueError(
            f"{name} is a {type(picture).__name__}: give a path, a NumPy array or Pillow's image"
        )
    shape, kind = picture.shape, picture.dtype
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != np.uint8:
        raise ValueError(
            f"{name} has shape {shape} and type {kind}, but must be (H, W, 3) uint8 in BGR"
        )
