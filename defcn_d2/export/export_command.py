"""The command line of ``tools/export.py``."""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..demo.inputs import find_images
from ..engine.predictor import Predictor, read_rgb, require_defcn
from ..engine.reporting import reported
from ..utils.command_line import add_model_arguments, input_files, trained_config
from ..utils.errors import UserError
from ..utils.files import check_outputs, write_atomically
from .artifacts import FORMATS, Outputs, require_onnx
from .benchmark import latency
from .comparison import Difference
from .description import describe
from .detector import DeployedDetector
from .verification import drawn_images, make_batches, tolerance_of, verify_artifact, verify_deployed

MAX_TOPK = 3840
"""The most that TensorRT's top-k gives."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a trained detector, verified on images: see docs/export.md."
    )
    add_model_arguments(parser)
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--fp16", action="store_true", help="compute in float16")
    parser.add_argument(
        "--topk",
        type=int,
        metavar="K",
        help="detections an image; default: TEST.DETECTIONS_PER_IMAGE, "
        "with NMS MODEL.DEFCN.TOPK_CANDIDATES_TEST",
    )
    parser.add_argument(
        "--resize",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="stretch images to this size inside the graph; boxes stay in pixels of the input",
    )
    parser.add_argument(
        "--images",
        metavar="FILES",
        help="a folder, a pattern or an image to verify with; default: images that are drawn",
    )
    parser.add_argument(
        "--benchmark", action="store_true", help="print the latency of the export and of PyTorch"
    )
    return parser.parse_args(arguments)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Export, verify, write.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status: 1 after a mistake or where the export does not give what the model gives.
    """
    args = parse_arguments(arguments)
    cfg = setup(args)
    images = read_images(args.images, cfg.INPUT.MAX_PIXELS)
    predictor = Predictor(cfg, device="cpu")
    model, cfg = require_defcn(predictor.model, "is exported"), predictor.cfg
    topk = args.topk or default_topk(cfg)
    resize = tuple(args.resize) if args.resize else None
    batches = make_batches(
        images, cfg.INPUT.MIN_SIZE_TEST or 800, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT
    )
    reference = DeployedDetector(model, topk, resize)
    _report("PyTorch, DeFCN.forward", verify_deployed(model, reference, batches))
    detector = DeployedDetector(model, topk, resize, half=True) if args.fp16 else reference
    artifact = FORMATS[args.format](detector, describe(cfg, detector))
    difference = verify_artifact(artifact, reference, batches, tolerance_of(args.fp16))
    _report(f"{args.format}, PyTorch", difference)
    try:
        write_atomically(args.output, artifact.content)
    except OSError as error:
        raise _unwritable(args.output, error) from error
    print(f"{args.output}: {len(artifact.content) / 1e6:.1f} MB, {_listed(artifact.operators)}")
    if args.benchmark:
        _print_latencies(artifact.run, reference, batches[0], args.format)
    if cfg.MODEL.DEFCN.NMS_TYPE != "none":
        print(
            f"NMS remains to be done: MODEL.DEFCN.NMS_TYPE is {cfg.MODEL.DEFCN.NMS_TYPE!r}, and "
            f"the outputs are the {topk} best candidates of an image, with duplicates; drop them "
            f"class by class above an IoU of {cfg.MODEL.DEFCN.NMS_THRESH_TEST}"
        )
    return 0


def setup(args: argparse.Namespace) -> CfgNode:
    """The config; mistakes in the arguments are reported before any work."""
    cfg = trained_config(args)
    if args.topk is not None and not 1 <= args.topk <= MAX_TOPK:
        raise UserError(f"--topk is {args.topk}: give 1 to {MAX_TOPK}")
    if args.resize and min(args.resize) < 1:
        raise UserError(f"--resize is {args.resize[0]} {args.resize[1]}: give pixels, as 800 1088")
    if args.format == "onnx":
        require_onnx()
    args.output = check_output(args.output)
    images = _image_files(args.images) if args.images else []
    check_outputs([args.output], [*input_files(args, cfg), *images], "--output")
    return cfg


def check_output(output: str) -> Path:
    """The file to write; its folder is made.

    Raises:
        UserError: it is a folder, or cannot be written.
    """
    path = Path(output).expanduser()
    if path.is_dir():
        raise UserError(f"--output {output!r} is a folder: give a file, as {output}/model.onnx")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output: the folder {str(path.parent)!r} is not writable; give another")
    return path


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"--output {str(path)!r} cannot be written ({error.strerror}); give another")


def read_images(name: str | None, max_pixels: int = 0) -> list[np.ndarray]:
    """The first few images (H, W, 3) uint8, BGR, that the argument names; drawn ones of none."""
    if name is None:
        return drawn_images()
    images = []
    for path in _image_files(name)[:6]:
        try:
            images.append(np.ascontiguousarray(read_rgb(path, max_pixels)[:, :, ::-1]))
        except UserError as error:
            raise UserError(f"--images: {error}; leave it out") from error
    return images


def _image_files(name: str) -> list[str]:
    try:
        return find_images([name])
    except UserError as error:
        raise UserError(str(error).replace("--input", "--images")) from error


def default_topk(cfg: CfgNode) -> int:
    """Number of detections that the model gives or, with NMS, that NMS chooses from."""
    if cfg.MODEL.DEFCN.NMS_TYPE == "none":
        return min(cfg.TEST.DETECTIONS_PER_IMAGE, MAX_TOPK)
    return min(cfg.MODEL.DEFCN.TOPK_CANDIDATES_TEST, MAX_TOPK)


def _report(names: str, difference: Difference) -> None:
    print(
        f"{names}: {difference.compared} detections compared, largest differences "
        f"{difference.scores:.1e} in score, {difference.boxes:.1e} pixels in boxes"
    )


def _listed(operators: Counter[str]) -> str:
    kinds = ", ".join(f"{name} {number}" for name, number in operators.most_common())
    return f"{sum(operators.values())} operators ({kinds})"


def _print_latencies(
    exported: Callable[[Tensor], Outputs], reference: DeployedDetector, batch: Tensor, name: str
) -> None:
    shape = " x ".join(map(str, batch.shape))
    print(f"latency for images {shape}, {torch.get_num_threads()} threads (median, ms)")
    for label, run_one in (("PyTorch", reference), (name, exported)):
        print(f"  {label:12} {latency(run_one, batch):8.1f}")
