"""The command line of ``demo/demo.py``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..engine.predictor import Predictor, metadata_of
from ..engine.reporting import reported
from ..evaluation.stored_thresholds import AUTO, BEST, find_confidence
from ..utils.command_line import add_model_arguments, input_files, trained_config
from ..utils.errors import UserError, as_user_error
from ..utils.files import check_outputs
from ..utils.printable import printable
from .coco_results import Results
from .images import run_on_images
from .inputs import find_images, output_files
from .video import open_source, output_file, run_on_video
from .window import Window

DEFAULT = 0.3  # least score, where no better one is known


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
        "--confidence",
        "--confidence-threshold",
        type=_confidence,
        metavar="SCORE",
        help="least score kept, or 'best': that of the best F1 in the last evaluation of the "
        f"weights [best, where it is known, else {DEFAULT}]",
    )
    return parser.parse_args(arguments)


def _confidence(text: str) -> float | str:
    return text if text == BEST else float(text)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Detect and draw.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status: 1 if a file could not be read, or after another mistake.
    """
    args = parse_arguments(arguments)
    cfg = trained_config(args)
    wanted = AUTO if args.confidence is None else args.confidence
    with as_user_error(UserError, "--confidence: {}"):
        config_file = os.path.expanduser(args.config_file)
        confidence, why = find_confidence(wanted, cfg.MODEL.WEIGHTS, config_file)
    if why:
        print(printable(why))
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
    predictor = Predictor(cfg, confidence=DEFAULT if confidence is None else confidence)
    if predictor.cfg.MODEL.DEVICE != cfg.MODEL.DEVICE:
        print("No CUDA device: running on the CPU")
    detect = predictor.detections

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
