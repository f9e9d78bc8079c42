"""Detectron2's default trainer with this project's optimizer, evaluators and checkpoints."""

import contextlib
import importlib.util
import logging
import os
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import (
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from ..config.load import value_errors_as_user_errors
from ..data.mapper import BlankWhereBroken, CheckedMapper
from ..evaluation.nms_gap import WithAndWithoutNMS
from ..evaluation.validation_loss import WithLosses
from ..modeling.meta_arch import DeFCN
from ..utils.detectron2_compat import write_every
from ..utils.errors import UserError, as_user_error
from ..weights.checkpointer import Checkpointer
from .best_checkpoint import BestCheckpoint
from .cluster.preemption import Preempted, Preemption, Stops
from .cluster.scaling import scale_to_workers
from .data_loading import EvaluationLoader, TrainingLoader
from .datasets import load_records, log_images_without_objects
from .early_stopping import EarlyStopping, StoppedEarly
from .ema import EMAUpdate, WeightsEMA
from .evaluators import build_evaluator
from .hooks import EmptyBoxes, Progress, TrainingTime
from .mixed_precision import build_step_trainer
from .nonfinite import NonFiniteLoss, write_dump
from .optimizer import build_optimizer
from .pictures import DetectionPictures
from .resuming import SETTINGS_KEY, check_settings, optimizer_settings
from .seeds import StepSeeds, seed_of_run
from .throughput import MetricPrinter, Throughput
from .writers import TRACKERS, ForgetPictures, check_packages

logger = logging.getLogger(__name__)

# Detectron2 v0.5 leaves the optimizer out of its checkpoints.
_SAVES_OPTIMIZER = "state_dict" in vars(DefaultTrainer)


class Trainer(DefaultTrainer):
    """Training and evaluation by a config, as ``train_net.py`` does it.

    Attributes:
        ema: the average of the weights, or None where ``MODEL.EMA`` is not enabled.
        seed: what the order of the images, their augmentation and every step's random numbers
            follow from; part of the checkpoints.
    """

    def __init__(self, cfg: CfgNode, preemption: Preemption | None = None):
        """
        Args:
            preemption: of this process; None: signals do what they do by default.
        """
        TrainerBase.__init__(self)  # not DefaultTrainer's, which knows CUDA devices only
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self._settings = optimizer_settings(cfg)  # not scaled, as the processes may be others
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.preemption = preemption or Preemption()
        self.seed = seed_of_run(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.ema = WeightsEMA.from_config(cfg, model)
        self._trainer = build_step_trainer(cfg, distributed(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            averaged=cfg.MODEL.EMA.ENABLED,
            num_classes=cfg.MODEL.DEFCN.NUM_CLASSES if isinstance(model, DeFCN) else 0,
            ema=self.ema,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            may_run_code=cfg.MODEL.WEIGHTS_MAY_RUN_CODE,
            trainer=weakref.proxy(self),
        )
        metric = cfg.SOLVER.CHECKPOINT_BEST
        self.best = BestCheckpoint(self.checkpointer, metric) if metric else None
        patience, self.early_stopping = cfg.TEST.EARLY_STOPPING.PATIENCE, None
        if patience and self.best is not None:
            self.early_stopping = EarlyStopping(self.best, patience, cfg.TEST.EVAL_PERIOD)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Detectron2's, for the keys of this project as well; see ``scale_to_workers``."""
        return scale_to_workers(cfg, num_workers)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of a config; ``UserError`` where a value in it is at fault."""
        with value_errors_as_user_errors(cfg):
            model = super().build_model(cfg)
        cls._evaluated(cfg, model)  # what cannot be evaluated so is found now
        return model

    @staticmethod
    def _evaluated(cfg: CfgNode, model: nn.Module) -> nn.Module:
        """The model with the further outputs that ``TEST.WITH_NMS`` and ``TEST.LOSS`` ask for."""
        if cfg.TEST.WITH_NMS:
            model = WithAndWithoutNMS(model, cfg.MODEL.DEFCN.NMS_THRESH_TEST)
        return WithLosses(model) if cfg.TEST.LOSS else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        solver = cfg.SOLVER
        if solver.WARMUP_ITERS >= solver.MAX_ITER and solver.WARMUP_FACTOR < 1:
            logger.warning(
                "SOLVER.WARMUP_ITERS is %d, but the training ends after SOLVER.MAX_ITER %d: the "
                "learning rate never reaches SOLVER.BASE_LR, and little or nothing is learnt; set "
                "SOLVER.WARMUP_ITERS %d",
                *(solver.WARMUP_ITERS, solver.MAX_ITER, solver.MAX_ITER // 10),
            )
        message = (
            f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r} with MAX_ITER "
            f"{solver.MAX_ITER} and STEPS {tuple(solver.STEPS)} gives no schedule: {{}}"
        )
        with as_user_error((ValueError, AssertionError), message):
            return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        records = load_records(cfg, cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        log_images_without_objects(records)
        images = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE
        return TrainingLoader(cfg, records, CheckedMapper.from_config(cfg, True), images)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        records = load_records(cfg, [dataset_name], filter_empty=False)
        return EvaluationLoader(records, _test_mapper(cfg), cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """Detectron2's, with ``TEST.WITH_NMS`` and ``TEST.LOSS``: see ``build_evaluator``."""
        return super().test(cfg, cls._evaluated(cfg, model), evaluators)

    def build_hooks(self) -> list[HookBase]:
        own: list[HookBase] = [
            StepSeeds(),
            Progress(),
            EmptyBoxes(),
        ]  # first: what comes after saves and evaluates
        if self.ema is not None:
            own.append(EMAUpdate(self.ema))
        own.append(TrainingTime())
        if comm.is_main_process():
            own.append(Throughput(self.cfg.SOLVER.IMS_PER_BATCH, self.cfg.DATALOADER.NUM_WORKERS))
        evaluation = EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        theirs = super().build_hooks()
        i = next(i for i, x in enumerate(theirs) if type(x) is EvalHook)
        early = [] if self.early_stopping is None else [self.early_stopping]
        theirs[i : i + 1] = [Stops(self._save_and_stop), evaluation, *early]
        if self.cfg.VIS_PERIOD and self.cfg.MODEL.META_ARCHITECTURE == "DeFCN":
            theirs.insert(i + 2, DetectionPictures(self.cfg, _test_mapper(self.cfg)))
        if comm.is_main_process() and self.cfg.TEST.EVAL_PERIOD > 0:
            # metrics.json gets the last value alone of what is given between two lines
            write_every(theirs[-1], self.cfg.TEST.EVAL_PERIOD)
        return [*own, *theirs]

    def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
        """A block with the averaged weights, if any, in the model; all processes enter it."""
        return self.ema.weights_in_model() if self.ema is not None else contextlib.nullcontext()

    def _evaluate(self) -> OrderedDict:
        try:
            with self.preemption.preempted_at_once(), self.evaluated_weights():
                self._last_eval_results = self.test(self.cfg, self.model)
        except Preempted:
            if self.iter < self.max_iter - 1:
                self._save_and_stop()
            return OrderedDict()  # all is trained and saved: let the hooks that follow end
        if self.best is not None:
            self.best.consider(self._last_eval_results, min(self.iter, self.max_iter - 1))
        return self._last_eval_results

    def _save_and_stop(self, together: bool = False) -> None:
        """End the run after the step that it is at; ``together``: all processes are here."""
        with self.preemption.ignoring_signals():
            name = f"model_{self.iter:07d}"
            if self.iter < self.max_iter - 1 and self.checkpointer.last_name() != name:
                self.checkpointer.save(name, iteration=self.iter)
            if together:
                comm.synchronize()  # launchers end the others as soon as one ends
        self.preemption.stop(f"all is saved up to iteration {self.iter}")

    def train(self) -> Any:
        """Detectron2's; a run that has stopped early is at its end, as one that is finished."""
        early = self.early_stopping
        if early is not None and 0 < self.start_iter < self.max_iter:
            if early.is_due(self.start_iter - 1):
                early.end(self.start_iter - 1)
                self.max_iter = self.start_iter
        try:
            results = super().train()
        except StoppedEarly:
            results = self._last_eval_results
        if self.preemption.requested:
            self.preemption.stop("all is trained and saved, but not evaluated")
        return results

    def build_writers(self) -> list[EventWriter]:
        """Terminal, metrics.json, and what ``LOG.WRITERS`` names; TensorBoard where installed."""
        names = self.cfg.LOG.WRITERS
        check_packages(names)
        folder = self.cfg.OUTPUT_DIR
        PathManager.mkdirs(folder)
        metrics = os.path.join(folder, "metrics.json")
        end_last_line(metrics)
        writers: list[EventWriter] = [MetricPrinter(self.max_iter), JSONWriter(metrics)]
        trackers = [TRACKERS[name] for name in names if name in TRACKERS]
        writers += [tracker(self.cfg, lambda: self.checkpointer.resumed) for tracker in trackers]
        if "tensorboard" in names and importlib.util.find_spec("tensorboard"):
            return [*writers, TensorboardXWriter(folder)]  # last, as it clears the pictures
        return [*writers, ForgetPictures()]

    def after_train(self) -> None:
        # a finished run that is resumed makes no step, but counts one
        self.iter: int = min(self.iter, self.max_iter)
        stopped = self.early_stopping is not None and self.early_stopping.stopped
        if self.ema is not None and (stopped or self.iter == self.max_iter):
            self.checkpointer.export_averaged()
        super().after_train()

    def run_step(self) -> None:
        try:
            with self.preemption.step():
                super().run_step()
        except NonFiniteLoss as error:
            write_dump(error, self.cfg, self.model, self.iter, self.seed)
            raise

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's; a resumed run takes the batches that it would have taken."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed:
            self.start_iter = self.iter + 1
            if self.best is not None:
                self.best.go_on()
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise UserError(
                f"the processes would start at the iterations {starts}: OUTPUT_DIR "
                f"{self.cfg.OUTPUT_DIR!r} must be one folder, shared by all machines"
            )

    def before_train(self) -> None:
        loader = self._trainer.data_loader
        if isinstance(loader, TrainingLoader):
            loader.seed = self.seed
            loader.start = self.start_iter * self.cfg.SOLVER.ACCUMULATE
        super().before_train()

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "seed": self.seed, SETTINGS_KEY: self._settings}
        if not _SAVES_OPTIMIZER:
            state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_settings(self._settings, state_dict.get(SETTINGS_KEY))
        super().load_state_dict(state_dict)
        if self.cfg.SEED < 0:
            self.seed = state_dict.get("seed", self.seed)
        if not _SAVES_OPTIMIZER:
            self._trainer.load_state_dict(state_dict["_trainer"])


def distributed(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel where there are several processes, on any device."""
    if next(model.parameters()).is_cuda:
        return create_ddp_model(model, broadcast_buffers=False)
    return create_ddp_model(model, broadcast_buffers=False, device_ids=None)


def _test_mapper(cfg: CfgNode) -> Any:
    mapper = CheckedMapper.from_config(cfg, False, ground_truth=cfg.TEST.LOSS)
    if cfg.DATALOADER.ON_ERROR == "skip":
        return BlankWhereBroken(mapper, len(cfg.MODEL.PIXEL_MEAN))
    return mapper


def end_last_line(path: str) -> None:
    """End an unfinished last line, left by a kill, so that what is appended is not lost with it."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
