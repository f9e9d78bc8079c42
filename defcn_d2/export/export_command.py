"""The command line of ``tools/export.py``."""

import argparse
import json
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
from .artifacts import FORMATS, require_onnx, require_openvino
from .benchmark import latency
from .comparison import Difference
from .description import describe
from .detector import DeployedDetector, Outputs
from .raw_detector import RawDetector, fitted
from .verification import drawn_images, make_batches, tolerance_of, verify_artifact, verify_deployed

MAX_TOPK = 3840
"""The most that TensorRT's top-k gives."""

MAX_CALIBRATION = 200
"""Images for INT8: ranges hardly change with more."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a trained detector, verified on images: see docs/export.md."
    )
    add_model_arguments(parser)
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--fp16", action="store_true", help="compute in float16")
    parser.add_argument(
        "--int8",
        metavar="FILES",
        help="convolutions in INT8; a folder or a pattern of images like those to come, which say "
        "the ranges of values",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="end at scores and boxes of all locations, for one image of a fixed size",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="with --raw: of the image; default: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, rounded up",
    )
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
    predictor = Predictor(cfg, device="cpu", confidence=None)
    model, cfg = require_defcn(predictor.model, "is exported"), predictor.cfg
    topk = args.topk or default_topk(cfg)
    resize = tuple(args.resize) if args.resize else None
    reference = DeployedDetector(model, topk, resize)
    size = input_size(args, cfg, reference.divisibility) if args.raw else None
    batches = make_batches(
        images, cfg.INPUT.MIN_SIZE_TEST or 800, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, size
    )
    _report("PyTorch, DeFCN.forward", verify_deployed(model, reference, batches))
    deployed = DeployedDetector(model, topk, resize, half=True) if args.fp16 else reference
    calibration = read_calibration(args.int8, predictor, size) if args.int8 else []
    properties = describe(cfg, deployed, size, int8=bool(calibration))
    detector = RawDetector(deployed, size) if size else deployed
    artifact = FORMATS[args.format](detector, properties, calibration)
    tolerance = tolerance_of(json.loads(properties["precision"]))
    difference = verify_artifact(artifact, reference, batches, tolerance)
    _report(f"{args.format}, PyTorch", difference)
    try:
        if artifact.weights is not None:
            write_atomically(args.output.with_suffix(".bin"), artifact.weights)
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
    if args.int8 and args.fp16:
        raise UserError("--int8 and --fp16 are both given: leave one out")
    if args.size and not args.raw:
        raise UserError("--size is for --raw; without it, all sizes are taken: leave it out")
    if args.resize and args.raw:
        raise UserError("--resize is not for --raw, whose input has one size: give --size")
    if args.format == "onnx":
        require_onnx()
    if args.format == "openvino":
        require_openvino(bool(args.int8))
    args.output = check_output(args.output, ".xml" if args.format == "openvino" else "")
    images = _image_files(args.images) if args.images else []
    images += _image_files(args.int8, "--int8") if args.int8 else []
    outputs = [args.output]
    outputs += [args.output.with_suffix(".bin")] if args.format == "openvino" else []
    check_outputs(outputs, [*input_files(args, cfg), *images], "--output")
    return cfg


def input_size(args: argparse.Namespace, cfg: CfgNode, step: int) -> tuple[int, int]:
    """Height and width of the only input that a graph takes.

    Args:
        step: the size divisibility.
    """
    if args.size:
        return args.size[0], args.size[1]
    short, long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if not short:
        raise UserError("INPUT.MIN_SIZE_TEST is 0, images keep their size: give --raw --size H W")
    return -(-short // step) * step, -(-long // step) * step


def check_output(output: str, suffix: str = "") -> Path:
    """The file to write; its folder is made.

    Args:
        suffix: that its name needs.

    Raises:
        UserError: it is a folder, or cannot be written; its name ends in another way.
    """
    path = Path(output).expanduser()
    if suffix and path.suffix != suffix:
        raise UserError(f"--output is {output!r}: give a name in {suffix}, as model{suffix}")
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


def read_calibration(name: str, predictor: Predictor, size: tuple[int, int] | None) -> list[Tensor]:
    """Images (1, C, H, W) float32 for INT8, as the model gets them in tests.

    Args:
        name: the argument; of more than ``MAX_CALIBRATION`` files, as many, evenly spread.
        size: (height, width) that all are given; None: each has its own.
    """
    files = _image_files(name, "--int8")
    mean = torch.tensor(predictor.cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1)
    images = []
    for path in files[:: -(-len(files) // MAX_CALIBRATION)]:
        try:
            rgb = read_rgb(path, predictor.cfg.INPUT.MAX_PIXELS)
        except UserError as error:
            raise UserError(f"--int8: {error}; leave it out") from error
        image = predictor.inputs(rgb)["image"]
        if size is not None:
            image, _ = fitted(image, size, mean)
        images.append(image[None])
    return images


def _image_files(name: str, option: str = "--images") -> list[str]:
    try:
        return find_images([name])
    except UserError as error:
        raise UserError(str(error).replace("--input", option)) from error


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
