"""The command line of ``demo/demo.py``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..engine.predictor import Predictor, metadata_of
from ..engine.reporting import reported
from ..utils.command_line import add_model_arguments, input_files, trained_config
from ..utils.errors import UserError
from ..utils.files import check_outputs
from .coco_results import Results
from .images import run_on_images
from .inputs import find_images, output_files
from .video import open_source, output_file, run_on_video
from .window import Window


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw detections on images, a video or a webcam's pictures."
    )
    add_model_arguments(parser)
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
    targets = None
    if args.output:
        targets = [output_file(source, args.output)] if video else output_files(images, args.output)
    inputs = images or ([source] if isinstance(source, str) else [])
    check_output_files(args, [*input_files(args, cfg), *inputs], targets or [])
    metadata = metadata_of(cfg)
    names = metadata.get("thing_classes") or []
    results = Results(args.json, metadata) if args.json else None
    predictor = Predictor(cfg)
    if predictor.cfg.MODEL.DEVICE != cfg.MODEL.DEVICE:
        print("No CUDA device: running on the CPU")

    def detect(image: np.ndarray) -> Instances:
        found = predictor.detections(image)
        return found[found.scores >= args.confidence_threshold]

    if video is not None:
        target = targets[0] if targets else None
        status = run_on_video(video, source, detect, names, target, window, results)
    else:
        limit = cfg.INPUT.MAX_PIXELS
        status = run_on_images(images, targets, detect, names, window, results, limit)
    if results is not None:
        results.write()
    return status


def check_output_files(
    args: argparse.Namespace, inputs: Sequence[str], targets: Sequence[Path]
) -> None:
    """Refuse to write onto an input, and drawings and detections to one file."""
    check_outputs(targets, inputs, "--output")
    if args.json:
        check_outputs([args.json], inputs, "--json")
        path = args.json.expanduser().resolve()
        if path in [target.resolve() for target in targets]:
            raise UserError(
                f"--json {str(args.json)!r} is a drawing of --output, too: give another"
            )


def setup(args: argparse.Namespace) -> CfgNode:
    """The config, with the confidence threshold where a DeFCN has it."""
    cfg = trained_config(args)
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold is {args.confidence_threshold}: give 0 to 1")
    cfg.defrost()
    cfg.MODEL.DEFCN.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.freeze()
    return cfg
