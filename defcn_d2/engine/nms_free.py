"""A config by which a detector that was trained with NMS does without: see docs/nms-free.md."""

import argparse
from pathlib import Path

from detectron2.config import CfgNode

from ..config.files import config_folder
from ..modeling.head.build import nms_free_head
from ..utils.command_line import add_model_arguments, input_files, trained_config
from ..utils.errors import UserError, as_user_error
from ..utils.files import check_outputs, write_atomically
from ..weights.convert import convert
from .cpu import use_cpu
from .reporting import reported
from .trainer import Trainer

# What is laid on top of the detector's config: without and with training.
COMPARISON, SELECTOR = "nms_free/Base-comparison.yaml", "nms_free/Base-selector.yaml"


def nms_free_config(cfg: CfgNode, iterations: int = 0) -> CfgNode:
    """The config of the same detector without NMS.

    Args:
        cfg: of a trained one-to-many detector.
        iterations: of the training of the selector, everything else frozen; 0: there is none, and
            each location is but compared with its neighbours.

    Raises:
        UserError: of such a detector there is no form without NMS.
    """
    cfg = cfg.clone()
    cfg.defrost()
    overlay = config_folder() / (SELECTOR if iterations else COMPARISON)
    head = cfg.MODEL.DEFCN.HEAD
    trained = head.NAME
    cfg.merge_from_file(str(overlay), allow_unsafe=False)
    head.NAME = nms_free_head(trained) or ""
    if not head.NAME:
        raise UserError(
            f"MODEL.DEFCN.HEAD.NAME is {trained!r}, of which there is no form without NMS: give a "
            "detector that was trained one-to-many"
        )
    own = head[head.NAME]
    own.update({key: value for key, value in head[trained].items() if key in own})
    own.SELECTOR = bool(iterations)
    if iterations:
        solver = cfg.SOLVER
        solver.STEPS = tuple(
            int(step * iterations / solver.MAX_ITER) for step in solver.STEPS
        )  # the shape of the schedule stays
        solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, iterations // 10)
        solver.MAX_ITER = iterations
        cfg.TEST.EVAL_PERIOD = 0
    Trainer.build_model(use_cpu(cfg))  # finds what does not fit
    return cfg


@reported
def run(arguments: list[str] | None = None) -> None:
    """The command; ``reported`` makes it return the exit status."""
    parser = argparse.ArgumentParser(
        description="Write the config of a trained detector without NMS: each prediction is "
        "compared with its neighbours in space and scale, by which one-to-many detectors need "
        "no training, and, with --iterations, a selector is trained on top."
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of the new config.yaml"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=0,
        metavar="N",
        help="train the selector so long, everything else frozen [0: no training]",
    )
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if args.iterations < 0:
        raise UserError(f"--iterations {args.iterations} is too small; take 0 or more")
    cfg = trained_config(args)
    target = Path(args.output).expanduser() / "config.yaml"
    check_outputs([target], input_files(args, cfg), "--output")
    cfg = nms_free_config(cfg, args.iterations)
    cfg.OUTPUT_DIR = str(target.parent)
    with as_user_error(OSError, f"{target} cannot be written ({{}}); choose another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
    if args.iterations:  # the selector begins anew
        start = str(target.with_name("start.pth"))
        convert(cfg.MODEL.WEIGHTS, start, partial=True, averaged=cfg.MODEL.EMA.ENABLED)
        cfg.MODEL.WEIGHTS = start
    with as_user_error(OSError, f"{target} cannot be written ({{}}); choose another folder"):
        write_atomically(target, cfg.dump().encode())
    print(f"{target} is written; now\n  {_next_command(target, args.iterations)}")


def _next_command(config: Path, iterations: int) -> str:
    command = f"defcn-train --config-file {config}"
    return command if iterations else f"{command} --eval-only"
