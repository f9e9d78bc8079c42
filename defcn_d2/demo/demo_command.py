"""The command line of ``demo/demo.py``."""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..config.load import load_config
from ..engine import Predictor
from ..engine.cpu import use_cpu
from ..engine.image_predictor import metadata_of
from ..engine.reporting import reported
from ..utils.errors import UserError
from .coco_results import Results
from .images import run_on_images
from .inputs import find_images, output_files
from .parallel import Item, Result, Workers, gpus, one_by_one
from .video import open_source, output_file, run_on_video
from .window import Window


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw detections on images, a video or a webcam's pictures."
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="the one that was trained, or its short name, such as POTO-3DMF",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders, patterns such as 'dir/*.jpg'")
    source.add_argument("--video-input", metavar="FILE", help="a video, or the URL of a stream")
    source.add_argument(
        "--webcam", nargs="?", const=0, type=int, metavar="N", help="the first camera, or number N"
    )
    parser.add_argument(
        "--output", help="a file or folder to save drawings to; without it a window shows them"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="save the detections in COCO's results format, with or without drawings",
    )
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.3, help="least score kept [%(default)s]"
    )
    parser.add_argument("--parallel", action="store_true", help="one process for each GPU")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, at the end"
    )
    return parser.parse_args(arguments)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Detect and draw.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status: 1 if a file could not be read, or after another mistake.
    """
    args = parse_arguments(arguments)
    cfg = setup(args)
    # what may fail comes before the model is loaded
    images = find_images(args.input) if args.input else []
    source = args.video_input if args.webcam is None else args.webcam
    video = None if images else open_source(source, cfg.INPUT.MAX_PIXELS)
    window = None if args.output or args.json else Window()
    metadata = metadata_of(cfg)
    names = metadata.get("thing_classes") or []
    results = Results(args.json, metadata) if args.json else None
    with detector(cfg, args) as detect:
        if video is not None:
            target = output_file(source, args.output) if args.output else None
            status = run_on_video(video, source, detect, names, target, window, results)
        else:
            targets = output_files(images, args.output) if args.output else None
            limit = cfg.INPUT.MAX_PIXELS
            status = run_on_images(images, targets, detect, names, window, results, limit)
    if results is not None:
        results.write()
    return status


def setup(args: argparse.Namespace) -> CfgNode:
    """The config, with the confidence threshold where a DeFCN has it."""
    cfg = load_config(args.config_file, args.opts)
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold is {args.confidence_threshold}: give 0 to 1")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give a trained model, --opts MODEL.WEIGHTS FILE")
    cfg.defrost()
    cfg.MODEL.DEFCN.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.freeze()
    if not torch.cuda.is_available():
        if cfg.MODEL.DEVICE != "cpu":
            print("No CUDA device: running on the CPU")
        cfg = use_cpu(cfg)
    return cfg


@contextlib.contextmanager
def detector(
    cfg: CfgNode, args: argparse.Namespace
) -> Iterator[Callable[[Iterable[Item]], Iterator[Result]]]:
    """(tag, RGB image) to (tag, image, detections) in order, by one process or one for each GPU."""
    threshold = args.confidence_threshold

    def sure(items: Iterable[Result]) -> Iterator[Result]:
        # centerness changes scores after the model's own threshold
        return ((tag, image, found[found.scores >= threshold]) for tag, image, found in items)

    devices = gpus(cfg) if args.parallel else []
    if len(devices) > 1:
        print(f"--parallel: {len(devices)} GPUs, a process each")
        with Workers(cfg, devices) as workers:
            yield lambda items: sure(workers(items))
        return
    if devices:
        print(f"--parallel: there is one device alone ({devices[0]}), one process uses it")
    predictor: Callable[[np.ndarray], Instances] = Predictor(cfg)
    yield lambda items: sure(one_by_one(predictor, items))
