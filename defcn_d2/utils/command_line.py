"""Config, weights and overrides, given alike on the command lines of all programs."""

import argparse
import warnings

from detectron2.config import CfgNode

from ..config.load import find_config_file, load_config
from .errors import UserError


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--config-file``, ``--weights``, ``--opts`` and KEY VALUE pairs at the end."""
    parser.add_argument(
        "--config-file",
        required=required,
        default="",
        metavar="CONFIG",
        help="a file, such as the config.yaml of a run, or a short name such as shapes/POTO-3DMF",
    )
    add_weights(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="changes of the config, at the end; after an option that takes several values write "
        "--opts before them",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and ``--opts``: with Detectron2's own parser, the same as above."""
    parser.add_argument(
        "--weights", metavar="FILE", help="the trained model, short for MODEL.WEIGHTS FILE"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], dest="named_opts", help=argparse.SUPPRESS
    )


def overrides(args: argparse.Namespace) -> list[str]:
    """The KEY VALUE pairs of a command line, flat; ``--weights`` is the last."""
    opts = [*(args.opts or []), *args.named_opts]
    return opts if args.weights is None else [*opts, "MODEL.WEIGHTS", args.weights]


def trained_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command that needs a trained model.

    Raises:
        UserError: see ``load_config``; or there are no weights.
    """
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming")  # by Detectron2's anchors
    cfg = load_config(args.config_file, overrides(args))
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give a trained model, --weights FILE")
    return cfg


def input_files(args: argparse.Namespace, cfg: CfgNode) -> list[str]:
    """The files that a config and its command line name: they must not be written to."""
    own = [cfg.DATASETS.REGISTER[split].ANNOTATIONS for split in ("TRAIN", "VAL")]
    return [find_config_file(args.config_file), cfg.MODEL.WEIGHTS, *filter(None, own)]
