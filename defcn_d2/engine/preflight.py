"""Checks before anything is loaded: of the machine, the data, the model and the config."""

import argparse
import logging
import os

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from PIL import ImageMode

from ..config.load import value_errors_as_user_errors
from ..config.rules import ConfigError, check_rules
from ..config.training_rules import EVALUATION_RULES, check_training_config
from ..data import DatasetError
from ..data.readers.own_data import SPLITS, check_datasets, check_image_sizes
from ..modeling.meta_arch import DeFCN
from ..utils.errors import UserError, as_user_error, did_you_mean
from ..weights.checkpointer import last_checkpoint
from .cluster.distributed import Torchrun
from .cluster.scaling import scale_to_workers
from .datasets import check_classes, check_names
from .evaluators import check_backend, evaluator_type, metric_names
from .mixed_precision import check_precision
from .resuming import check_settings, optimizer_settings, settings_of
from .writers import check_packages

logger = logging.getLogger(__name__)


def uses_gpu(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Reports if a command runs on CUDA devices."""
    return torch.cuda.is_available() and args.num_gpus > 0 and cfg.MODEL.DEVICE != "cpu"


def check(cfg: CfgNode, args: argparse.Namespace, torchrun: Torchrun | None = None) -> None:
    """Raise ``UserError`` for a command that cannot do what it says.

    Args:
        cfg: its config.
        args: of Detectron2's ``default_argument_parser``.
        torchrun: what has started this process; None: Detectron2's launcher is to.
    """
    if torchrun is not None:
        _check_torchrun(torchrun, uses_gpu(cfg, args))
        processes = torchrun.world_size
    else:
        _check_machines(args)
        processes = args.num_gpus * args.num_machines if torch.cuda.is_available() else 1
    _check_data(cfg, args.eval_only)
    _check_model(cfg)
    _check_channels(cfg)
    _check_weights(cfg, args)
    _check_values(cfg, args.eval_only)
    if not args.eval_only:
        _check_batch(cfg, max(1, processes))
        check_packages(cfg.LOG.WRITERS)
        check_precision(cfg, "cuda" if uses_gpu(cfg, args) else "cpu")
    with as_user_error(DatasetError, "{}"):  # last, as large files take their time
        splits = ["VAL"] if args.eval_only else list(SPLITS)
        check_datasets(cfg, splits)
        if torchrun is None or torchrun.local_rank == 0:  # once a machine
            check_image_sizes(cfg, splits)


def warn_of_idle_keys(cfg: CfgNode) -> None:
    """Log keys of Detectron2 that are set and do nothing."""
    if cfg.TEST.AUG.ENABLED:
        logger.warning(
            "TEST.AUG.ENABLED True does nothing, as there is no test-time augmentation; "
            "set it False"
        )


def _check_machines(args: argparse.Namespace) -> None:
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank}, but must be from 0 to --num-machines "
            f"({args.num_machines}) less 1"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.num_gpus < 0 or gpus and args.num_gpus > gpus:
        raise UserError(f"--num-gpus is {args.num_gpus}, but this machine has {gpus}")
    if args.num_machines > 1 and not gpus:
        raise UserError(
            f"--num-machines is {args.num_machines}, but this machine has no CUDA device; "
            "training on several machines needs GPUs"
        )


def _check_torchrun(torchrun: Torchrun, on_gpu: bool) -> None:
    gpus = torch.cuda.device_count()
    if on_gpu and torchrun.local_world_size > gpus:
        raise UserError(
            f"torchrun has started {torchrun.local_world_size} processes on this machine, which "
            f"has {gpus} GPUs; give --nproc-per-node {gpus}, or --num-gpus 0 for the CPU"
        )
    if torchrun.world_size % torchrun.local_world_size:
        raise UserError(
            f"torchrun has started {torchrun.world_size} processes, which is no multiple of the "
            f"{torchrun.local_world_size} on this machine; start as many on each"
        )


def _check_data(cfg: CfgNode, eval_only: bool) -> None:
    keys = ["TEST"] if eval_only else ["TRAIN", "TEST"]
    for key in keys:
        names = cfg.DATASETS[key]
        check_names(names, f"DATASETS.{key}")
        if not names and (key == "TRAIN" or eval_only):
            own = f"DATASETS.REGISTER.{'VAL' if key == 'TEST' else key}"
            raise UserError(
                f"DATASETS.{key} names no data set: set it, as \"('shapes_val',)\", or give your "
                f"own data, {own}.ANNOTATIONS and {own}.IMAGES"
            )
        for name in names:
            check_classes(cfg, name)
    for name in cfg.DATASETS.TEST:
        evaluator_type(name)
    check_backend(cfg)


def _check_model(cfg: CfgNode) -> None:
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry:
            known = [known for known, _ in registry]
            raise UserError(f"{key} {name!r} is unknown; {did_you_mean(name, known)}")
    kind = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if issubclass(kind, DeFCN):
        _check_parts(kind, cfg)


def _check_parts(kind: type[DeFCN], cfg: CfgNode) -> None:
    """Build a model that takes no memory: its parts know best what they cannot do."""
    try:
        with value_errors_as_user_errors(cfg), torch.device("meta"):
            kind(cfg)
    except UserError:
        raise
    except Exception as error:  # of parts that need memory, say: Detectron2's Swin does
        logger.debug("The model cannot be tried before it is built: %s", error)


def _check_channels(cfg: CfgNode) -> None:
    image_format = cfg.INPUT.FORMAT
    try:  # as Detectron2 reads images: by Pillow, except for these two
        mode = "RGB" if image_format in ("BGR", "YUV-BT.601") else image_format
        channels = len(ImageMode.getmode(mode).bands)
    except KeyError as error:
        raise UserError(
            f"INPUT.FORMAT {image_format!r} is unknown; one of: BGR, RGB, L, RGBA, YUV-BT.601"
        ) from error
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != channels:
            raise UserError(
                f"MODEL.{key} has {len(cfg.MODEL[key])} numbers, but INPUT.FORMAT {image_format} "
                f"has {channels} channels; give one number a channel"
            )


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    path = cfg.MODEL.WEIGHTS
    last = last_checkpoint(cfg.OUTPUT_DIR) if args.resume else ""
    if last:
        if not args.eval_only:  # now, as config.yaml would have the new values else
            check_settings(optimizer_settings(cfg), settings_of(last))
        return
    if not path and args.eval_only:
        raise UserError(
            "--eval-only needs weights: give MODEL.WEIGHTS and a file, or --resume and the "
            f"OUTPUT_DIR of a training (now {cfg.OUTPUT_DIR!r}, without a checkpoint)"
        )
    if path and "://" not in path and not os.path.isfile(path):
        raise UserError(f"MODEL.WEIGHTS {path!r} does not exist; give an existing file")


def _check_values(cfg: CfgNode, eval_only: bool) -> None:
    with as_user_error(ConfigError, "{}"):
        check_rules(cfg, EVALUATION_RULES)
        if not eval_only:
            check_training_config(cfg)
            _check_best(cfg)


def _check_best(cfg: CfgNode) -> None:
    metric = cfg.SOLVER.CHECKPOINT_BEST.removeprefix("-")
    names = metric_names(cfg) if metric else None
    if names is not None and metric not in names:
        near = did_you_mean(metric, names)
        raise ConfigError(f"SOLVER.CHECKPOINT_BEST: there is no metric {metric!r}; {near}")


def _check_batch(cfg: CfgNode, processes: int) -> None:
    solver = scale_to_workers(cfg, processes).SOLVER
    images, parts = solver.IMS_PER_BATCH, solver.ACCUMULATE
    for divisor, name in (
        (processes, ""),
        (processes * parts, f"SOLVER.ACCUMULATE ({parts}) times "),
    ):
        if images % divisor:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {images}, but must be a multiple of {name}the number of "
                f"processes ({processes})"
            )
