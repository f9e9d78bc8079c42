"""The command line of ``train_net.py``, for this and other projects."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..config.load import find_config_file, load_config
from ..utils.command_line import add_weights, overrides
from ..utils.errors import as_user_error
from ..weights.checkpointer import Checkpointer
from .cluster.distributed import Torchrun
from .cluster.preemption import Preemption, forwarding_signals
from .cpu import use_cpu
from .datasets import load_records
from .logs import setup_logging
from .preflight import check, uses_gpu, warn_of_idle_keys
from .reporting import reported
from .seeds import use_deterministic_operators
from .trainer import Trainer

logger = logging.getLogger(__name__)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line, then train or evaluate.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status: 0; 1 after a mistake that the user can put right, named on stderr; 75
        after a signal of a cluster, SIGTERM or SIGUSR1, when all is saved.
    """
    parser = default_argument_parser()
    add_weights(parser)
    args = parser.parse_args(arguments)
    args.opts = overrides(args)
    with as_user_error(ValueError, "{}"):
        torchrun = Torchrun.from_environment()
    if torchrun is not None:
        _run_under(torchrun, args)
        return 0
    check(load_config(args.config_file, args.opts), args)
    processes = args.num_gpus * args.num_machines if torch.cuda.is_available() else 1
    if processes <= 1:
        main(args)
        return 0
    try:
        with forwarding_signals():
            launch(
                _worker,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except ProcessExitedException as error:  # one of several processes, which has said why
        if error.exit_code >= 0:
            return error.exit_code
        print(f"error: {error}; go on with --resume", file=sys.stderr)  # except one that is killed
        return 128 - error.exit_code
    return 0


def _run_under(torchrun: Torchrun, args: argparse.Namespace) -> None:
    """``main`` in a process that torchrun has started; after a failure it goes on by itself.

    The number of processes is torchrun's: of ``--num-gpus`` only 0, for the CPU, has a meaning.
    """
    args.resume = torchrun.connect() or args.resume
    args.num_gpus = min(args.num_gpus, 1)
    cfg = load_config(args.config_file, args.opts)
    check(cfg, args, torchrun)
    torchrun.join(on_gpu=uses_gpu(cfg, args))
    main(args)
    comm.synchronize()  # the store is with the first process
    torch.distributed.destroy_process_group()


def _worker(args: argparse.Namespace) -> None:
    """``main`` as one of several processes, which reports its own errors."""

    @reported
    def work() -> None:
        main(args)

    status = work()
    if status:
        sys.exit(status)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate, in each process.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        the results of an evaluation.

    Raises:
        UserError: a mistake that the user can put right.
    """
    preemption = Preemption()
    with preemption.listening():
        return _run(setup(args), args, preemption)


def _run(cfg: CfgNode, args: argparse.Namespace, preemption: Preemption) -> dict[str, Any] | None:
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            complete=True,
            averaged=cfg.MODEL.EMA.ENABLED,
            may_run_code=cfg.MODEL.WEIGHTS_MAY_RUN_CODE,
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    if comm.is_main_process():
        for name in cfg.DATASETS.TEST:  # now, not after days of training
            load_records(cfg, [name], filter_empty=False)
    trainer = Trainer(cfg, preemption)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def _make_output_folder(path: str) -> None:
    """Find out that nothing can be written now, and not with the first checkpoint."""
    if "://" in path:
        return
    message = f"OUTPUT_DIR {path!r} cannot be written to ({{}}); set it to a folder of yours"
    with as_user_error(OSError, message):
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line; begins the log and writes config.yaml, both to OUTPUT_DIR."""
    cfg = load_config(args.config_file, args.opts)
    if comm.is_main_process():
        _make_output_folder(cfg.OUTPUT_DIR)
    setup_logging(cfg.OUTPUT_DIR, comm.get_rank())
    if not torch.cuda.is_available():
        if cfg.MODEL.DEVICE != "cpu":
            logger.warning("No CUDA device: MODEL.DEVICE %s becomes cpu", cfg.MODEL.DEVICE)
        if args.num_gpus > 1:
            logger.warning("No CUDA device: one process instead of --num-gpus %d", args.num_gpus)
    if not uses_gpu(cfg, args):
        cfg = use_cpu(cfg)
    if args.config_file:
        args.config_file = find_config_file(args.config_file)  # for the log
    default_setup(cfg, args)
    warn_of_idle_keys(cfg)
    if cfg.SOLVER.DETERMINISTIC:
        use_deterministic_operators()
    return cfg
