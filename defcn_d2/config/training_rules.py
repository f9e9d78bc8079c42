"""Rules of a config for a training: the values of single keys, and how they fit together."""

from collections.abc import Iterator

from detectron2.config import CfgNode

from .rules import (
    ConfigError,
    check_rules,
    first_problem,
    list_of,
    numbers,
    one_of,
    optional,
    range_of,
    whole_numbers,
)

_AT_LEAST_0 = numbers("[0, inf)")
#: Rules for the keys that ``build_optimizer`` reads.
OPTIMIZER_RULES = {
    "SOLVER.OPTIMIZER": one_of("SGD", "AdamW"),
    "SOLVER.BASE_LR": numbers("(0, inf)"),
    "SOLVER.MOMENTUM": numbers("[0, 1)"),
    "SOLVER.WEIGHT_DECAY": _AT_LEAST_0,
    "SOLVER.WEIGHT_DECAY_NORM": optional(_AT_LEAST_0),
    "SOLVER.WEIGHT_DECAY_BIAS": optional(_AT_LEAST_0),
    "SOLVER.BIAS_LR_FACTOR": optional(_AT_LEAST_0),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": numbers("(0, inf)"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": numbers("(0, inf]"),
}
_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)

#: Rules for what an evaluation depends on, and a training as well.
EVALUATION_RULES = {
    "SEED": whole_numbers("(-inf, 4294967295]"),  # NumPy's
    "DATALOADER.NUM_WORKERS": whole_numbers("[0, inf)"),
    "DATALOADER.ON_ERROR": one_of("stop", "skip"),
    "TEST.SCORE_REPORT": one_of("none", "numbers", "page"),
    "TEST.COCO_BACKEND": one_of("pycocotools", "faster-coco-eval"),
}
_SHARE, _MIXED = numbers("[0, 1]"), ("MOSAIC", "MIXUP", "COPY_PASTE")
_AUGMENTATION_RULES = {
    **{f"INPUT.{name}.{key}": _SHARE for name in _MIXED for key in ("PROB", "START", "STOP")},
    "INPUT.MOSAIC.ROTATION": numbers("[0, 180]"),
    "INPUT.MOSAIC.TRANSLATION": _SHARE,
    "INPUT.MOSAIC.SCALE": range_of(numbers("(0, inf)")),
    "INPUT.MOSAIC.MIN_VISIBLE": _SHARE,
    "INPUT.MIXUP.SHARE": range_of(numbers("(0, 1)")),
    "INPUT.COPY_PASTE.OBJECTS": whole_numbers("[1, inf)"),
    "INPUT.COPY_PASTE.MIN_AREA": _AT_LEAST_0,
    "INPUT.COPY_PASTE.EXPAND": range_of(_AT_LEAST_0),
    "INPUT.COPY_PASTE.SHARE": range_of(numbers("(0, 1)")),
    "INPUT.SCALE_JITTER.RANGE": range_of(numbers("(0, inf)")),
    "INPUT.SCALE_JITTER.SIZE": whole_numbers("[1, inf)"),
}
#: Rules for what a training depends on besides.
TRAINING_RULES = {
    **OPTIMIZER_RULES,
    "MODEL.EMA.DECAY": numbers("[0, 1)"),
    "MODEL.EMA.WARMUP": whole_numbers("[0, inf)"),
    "SOLVER.MAX_ITER": whole_numbers("[1, inf)"),
    "SOLVER.IMS_PER_BATCH": whole_numbers("[1, inf)"),
    "SOLVER.ACCUMULATE": whole_numbers("[1, inf)"),
    "SOLVER.CHECKPOINT_PERIOD": whole_numbers("[1, inf)"),
    "SOLVER.CHECKPOINT_KEEP": whole_numbers("[0, inf)"),
    "SOLVER.LR_SCHEDULER_NAME": one_of(*_SCHEDULES),
    "SOLVER.STEPS": list_of(whole_numbers("[1, inf)"), least=0),
    "SOLVER.GAMMA": numbers("(0, 1]"),
    "SOLVER.BASE_LR_END": numbers("[0, inf)"),
    "SOLVER.WARMUP_FACTOR": numbers("[0, 1]"),
    "SOLVER.WARMUP_ITERS": whole_numbers("[0, inf)"),
    "SOLVER.WARMUP_METHOD": one_of("constant", "linear"),
    "INPUT.MIN_SIZE_TRAIN": list_of(whole_numbers("[0, inf)")),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": whole_numbers("[1, inf)"),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": one_of("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": list_of(numbers("(0, inf)"), least=2),
    **_AUGMENTATION_RULES,
    "DATALOADER.SAMPLER_TRAIN": one_of(*_SAMPLERS),
    "DATALOADER.REPEAT_THRESHOLD": numbers("[0, inf)"),
    "TEST.EVAL_PERIOD": whole_numbers("[0, inf)"),
    "TEST.EARLY_STOPPING.PATIENCE": whole_numbers("[0, inf)"),
    "TEST.PRECISE_BN.NUM_ITER": whole_numbers("[1, inf)"),
    "VIS_PERIOD": whole_numbers("[0, inf)"),
    "LOG.WRITERS": list_of(one_of("tensorboard", "wandb", "mlflow"), least=0),
}


def check_training_config(cfg: CfgNode) -> None:
    """Raise ``ConfigError`` for the first thing in a config that no training can be run with.

    The message is one sentence that names the key, its value and what it must be.
    """
    check_rules(cfg, TRAINING_RULES)
    problem = first_problem(_contradictions(cfg))
    if problem is not None:
        raise ConfigError(problem)


def _contradictions(cfg: CfgNode) -> Iterator[str]:
    yield from _sizes(cfg.INPUT)
    for name in _MIXED:
        yield from _mixed(cfg, name)
    solver = cfg.SOLVER
    if list(solver.STEPS) != sorted(set(solver.STEPS)):
        yield f"SOLVER.STEPS is {tuple(solver.STEPS)}, but must ascend"
    if solver.DETERMINISTIC and cfg.SEED < 0:
        yield (
            f"SOLVER.DETERMINISTIC is True, but SEED is {cfg.SEED}, which draws another seed every "
            "time; set SEED to 0 or more"
        )
    if solver.CHECKPOINT_BEST and not (cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
        yield (
            f"SOLVER.CHECKPOINT_BEST is {solver.CHECKPOINT_BEST!r}, but nothing is evaluated "
            "during the training; set TEST.EVAL_PERIOD and DATASETS.TEST, or CHECKPOINT_BEST to ''"
        )
    if cfg.TEST.EARLY_STOPPING.PATIENCE and not solver.CHECKPOINT_BEST:
        yield (
            f"TEST.EARLY_STOPPING.PATIENCE is {cfg.TEST.EARLY_STOPPING.PATIENCE}, but "
            "SOLVER.CHECKPOINT_BEST is '', so nothing says what is better; set it, as 'bbox/AP' "
            "or '-val_loss'"
        )
    if cfg.VIS_PERIOD and cfg.MODEL.META_ARCHITECTURE == "DeFCN" and not cfg.DATASETS.TEST:
        yield (
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, but there are no images to draw detections in; set "
            "DATASETS.TEST, or VIS_PERIOD 0"
        )
    if cfg.MODEL.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED:
        yield (
            "TEST.PRECISE_BN.ENABLED and MODEL.EMA.ENABLED are both True, but precise statistics "
            "are those of the live weights, which are not evaluated then; set one of them False"
        )
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        yield "SOLVER.NESTEROV is True, but SOLVER.MOMENTUM is 0; set it above 0"


def _sizes(node: CfgNode) -> Iterator[str]:
    low, high = max(node.MIN_SIZE_TRAIN), node.MAX_SIZE_TRAIN
    if low > high:
        yield f"INPUT.MAX_SIZE_TRAIN is {high}, but must be at least MIN_SIZE_TRAIN, {low}"
    if node.MIN_SIZE_TRAIN_SAMPLING == "range" and len(node.MIN_SIZE_TRAIN) != 2:
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {node.MIN_SIZE_TRAIN}, but with MIN_SIZE_TRAIN_SAMPLING "
            "'range' must be the smallest and the largest size"
        )
    if node.CROP.ENABLED and node.CROP.TYPE.startswith("relative") and max(node.CROP.SIZE) > 1:
        yield (
            f"INPUT.CROP.SIZE is {node.CROP.SIZE}, but with CROP.TYPE {node.CROP.TYPE!r} must be "
            "shares of the image, at most 1"
        )


def _mixed(cfg: CfgNode, name: str) -> Iterator[str]:
    """Keys that do not go together with ``INPUT.<name>``, which mixes images."""
    node = cfg.INPUT[name]
    if not node.PROB:
        return
    if node.START >= node.STOP:
        yield f"INPUT.{name}.START is {node.START}, but must be below STOP, {node.STOP}"
    for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            yield (
                f"INPUT.{name}.PROB is {node.PROB}, but boxes alone are mixed, and MODEL.{key} is "
                "True; set one of them to 0 or False"
            )
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        yield (
            f"INPUT.{name}.PROB is {node.PROB}, but takes others from all images, not from the "
            "subset of DATALOADER.SAMPLER_TRAIN 'RandomSubsetTrainingSampler'; set PROB 0, or "
            "train on a file of the subset"
        )
