"""Every configuration key that belongs to no component, with its default and one line of why."""

from detectron2.config import CfgNode as CN

from ..modeling.criterion import CRITERION_REGISTRY
from ..modeling.head import HEAD_REGISTRY
from ..modeling.loss import CLASS_LOSS_REGISTRY
from ..modeling.matcher import MATCHER_REGISTRY
from ..modeling.neck import NECK_REGISTRY

#: Registries of the parts that are chosen by name: their nodes at ``MODEL.DEFCN``, and ``AUX``.
REGISTRIES = {
    "NECK": NECK_REGISTRY,
    "HEAD": HEAD_REGISTRY,
    "MATCHER": MATCHER_REGISTRY,
    "CRITERION": CRITERION_REGISTRY,
    "LOSS": CLASS_LOSS_REGISTRY,
}


def add_defcn_config(cfg: CN) -> None:
    """Add the keys under ``MODEL.DEFCN`` (and a few beside Detectron2's own) to ``cfg``, in place.

    The defaults are the plain one-to-one configuration of the release (arXiv 2012.03544), without
    3D Max Filtering and without the auxiliary loss. Keys of components, such as
    ``MODEL.DEFCN.MATCHER.<Name>.<KEY>``, are the keyword arguments of their classes: of all that
    are registered when this function is called.

    Args:
        cfg: a Detectron2 config, e.g. from ``detectron2.config.get_cfg()``.
    """
    cfg.MODEL.DEFCN = CN()
    node = cfg.MODEL.DEFCN

    # Number of foreground classes K.
    node.NUM_CLASSES = 80
    # Feature maps of the backbone that the head runs on, finest first. Strides follow from them.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # "points": a location regresses the distances (l, t, r, b) to the sides of its box.
    # "anchors": it regresses Box2BoxTransform deltas of its anchors, see MODEL.ANCHOR_GENERATOR.
    node.PRIORS = "points"
    # Weights and feature maps in PyTorch's channels_last format, which is faster on CPUs; left out,
    # with a warning, where its convolutions there cannot bear it (fewer than 16 channels).
    node.CHANNELS_LAST = False
    # torch.compile of backbone and head; where it fails, one warning, and they run without it.
    node.COMPILE = CN()
    node.COMPILE.ENABLED = False
    # Its backend: "inductor" makes the code faster, "aot_eager" and "eager" look for errors.
    node.COMPILE.BACKEND = "inductor"

    # The backbone of the package timm, by its name there: any that gives feature maps.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""
    # Its norms of batches: "FrozenBN" stays as the weights have it; "BN", "SyncBN" are trained.
    cfg.MODEL.TIMM.NORM = "FrozenBN"

    _add_head_config(node)
    _add_component_config(node)
    _add_inference_config(node)
    _add_training_config(cfg)
    _add_data_config(cfg)
    _add_ema_config(cfg)


def _add_head_config(node: CN) -> None:
    # 3x3 convs in each of the two towers, and the normalisation after each ("" for none).
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # Whether the convs of the towers have a bias (not so in arXiv 2012.05780).
    node.CONV_BIAS = True
    # Foreground probability of every location before training: sets the bias of cls_score.
    node.PRIOR_PROB = 0.01
    # Bias of bbox_pred at the start: with distances, boxes begin at this many strides to each side.
    # 0, as in the release, begins with boxes of size 0, some of which never grow; 4 is better. With
    # anchors boxes begin as those, whatever this is.
    node.BOX_BIAS = 0.0
    # True: distances are relu(scale * x) * stride. False: exp(scale * x) pixels.
    node.NORM_REG_TARGETS = True
    # The number that a location predicts beside its classes and box:
    # "none"; "filter": 3D Max Filtering, multiplied into the class scores; "centerness";
    # "objectness": one convolution, multiplied into the class scores.
    node.QUALITY_BRANCH = "none"

    # Compute the head again in the backward pass, for less memory; not with norms of batches.
    node.HEAD_CHECKPOINTING = False

    node.MAX_FILTERING = CN()
    # How many levels take part in a maximum besides the location's own: tau / 2 on each side.
    node.MAX_FILTERING.TAU = 2
    # Side of the spatial window, in cells.
    node.MAX_FILTERING.KERNEL_SIZE = 3
    # Normalisation after the maximum ("" for none: the release's "wo_gn").
    node.MAX_FILTERING.NORM = "GN"


def _add_component_config(node: CN) -> None:
    """Nodes of the parts that are chosen by name, with the keys of all that are registered."""
    # Between the backbone's maps and the head; "" for none.
    node.NECK = NECK_REGISTRY.node("NECK")
    # Feature maps to predictions.
    node.HEAD = HEAD_REGISTRY.node("HEAD")
    # Which ground truth each location learns.
    node.MATCHER = MATCHER_REGISTRY.node("MATCHER")
    # Predictions and ground truth to losses.
    node.CRITERION = CRITERION_REGISTRY.node("CRITERION")
    # The criterion's loss of the class logits.
    node.LOSS = CLASS_LOSS_REGISTRY.node("LOSS")

    # A second criterion beside the main one, whose losses end with "_aux".
    node.AUX = CN()
    node.AUX.ENABLED = False
    # A head of its own gives the set of predictions "aux"; "" for none.
    node.AUX.HEAD = HEAD_REGISTRY.node("AUX.HEAD")
    # Its own matcher, criterion and class loss.
    node.AUX.MATCHER = MATCHER_REGISTRY.node("AUX.MATCHER")
    node.AUX.CRITERION = CRITERION_REGISTRY.node("AUX.CRITERION")
    node.AUX.LOSS = CLASS_LOSS_REGISTRY.node("AUX.LOSS")


def _add_inference_config(node: CN) -> None:
    # The head's set of predictions that detections come from; most heads have "main" alone.
    node.PREDICTIONS_TEST = "main"
    # Candidates below this score are dropped before the boxes are decoded.
    node.SCORE_THRESH_TEST = 0.05
    # Candidates per level, at most (and at most as many as the level has locations).
    node.TOPK_CANDIDATES_TEST = 1000
    # "none": end to end. "class_wise": non-maximum suppression within each class.
    node.NMS_TYPE = "none"
    # Predicted boxes that decide in NMS: "" for the boxes themselves, or a name that the head gives
    # beside them, as for the visible part of a person in a crowd.
    node.NMS_BOXES = ""
    # IoU above which NMS drops the lower score (also of the second evaluation, TEST.WITH_NMS).
    node.NMS_THRESH_TEST = 0.6
    # True: one top-k over all locations and classes and no threshold, the path for deployment.
    node.TOPK_ONLY_TEST = False


def _add_training_config(cfg: CN) -> None:
    # Parameters whose names begin so, as with "backbone" or "head.cls", stay as MODEL.WEIGHTS has
    # them, their norms' statistics too; but not those that FREEZE_EXCEPT names.
    cfg.MODEL.DEFCN.FREEZE = []
    cfg.MODEL.DEFCN.FREEZE_EXCEPT = []
    # "SGD" (Detectron2's) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Of SOLVER.AMP.ENABLED: "float16", with a scaler (CUDA alone), or "bfloat16" (a CPU as well).
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Micro batches of a step: IMS_PER_BATCH stays the number of images of a whole step (and the
    # learning rate what it is), of which 1 / ACCUMULATE are in memory at a time.
    cfg.SOLVER.ACCUMULATE = 1
    # Operators that give the same bits every time: a run can be repeated exactly. Needs SEED.
    cfg.SOLVER.DETERMINISTIC = False
    # How many of the last checkpoints stay, older ones are removed; 0: all.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # Metric, such as "bbox/AP", whose best checkpoint is kept as model_best.pth; "": none.
    cfg.SOLVER.CHECKPOINT_BEST = ""
    _add_test_config(cfg)
    # Where figures go beside the terminal and metrics.json, pictures of VIS_PERIOD as well:
    # "tensorboard" where it is installed, "wandb", "mlflow" (packages to install, offline).
    cfg.LOG = CN()
    cfg.LOG.WRITERS = ["tensorboard"]
    # Project, or experiment, of their runs, which are named as the folder OUTPUT_DIR.
    cfg.LOG.PROJECT = "defcn_d2"
    # Let MODEL.WEIGHTS, a .pkl file, hold more than arrays: reading it may run its author's code.
    cfg.MODEL.WEIGHTS_MAY_RUN_CODE = False


def _add_test_config(cfg: CN) -> None:
    # Evaluate the same raw detections again with class-wise NMS, and report the gap.
    cfg.TEST.WITH_NMS = False
    # The losses of the criteria on the data of DATASETS.TEST as well: `val_loss` in metrics.json.
    cfg.TEST.LOSS = False
    # "numbers": after an evaluation, the score with the best F1 (see docs/getting-started.md).
    # "page": precision-recall curves and the confusion matrix, too, as an HTML page. "none".
    cfg.TEST.SCORE_REPORT = "numbers"
    # A training ends after so many evaluations without a better SOLVER.CHECKPOINT_BEST; 0: never.
    cfg.TEST.EARLY_STOPPING = CN()
    cfg.TEST.EARLY_STOPPING.PATIENCE = 0
    # Each location is detected as its best class alone, in evaluations, demos and exports.
    cfg.TEST.ONE_CLASS_PER_LOCATION = False
    # Figures of data in COCO's format by "pycocotools", or by "faster-coco-eval", the same and
    # sooner (pip install faster-coco-eval).
    cfg.TEST.COCO_BACKEND = "pycocotools"


def _add_data_config(cfg: CN) -> None:
    # Data of your own (docs/own-data.md). What is given takes the place of DATASETS.TRAIN and
    # DATASETS.TEST, and sets the number of classes.
    cfg.DATASETS.REGISTER = CN()
    node = cfg.DATASETS.REGISTER
    node.TRAIN, node.VAL = CN(), CN()
    # Annotations to train with: COCO's .json, YOLO's data.yaml, or of Pascal VOC the folder of xml
    # or a list of the split. Relative paths start at the current folder.
    node.TRAIN.ANNOTATIONS = ""
    # Folder that the names of its images are relative to; "" for the one that YOLO's or VOC's files
    # lead to.
    node.TRAIN.IMAGES = ""
    # Annotations to evaluate with, of the same categories.
    node.VAL.ANNOTATIONS = ""
    # Folder that the names of its images are relative to, or "".
    node.VAL.IMAGES = ""
    # Names of the classes by ascending category id; [] is set to those of the annotations.
    node.CLASSES = []
    # Their category ids, which results are written with; [] is set to those of the file.
    node.CATEGORY_IDS = []
    # Further boxes of the objects: "visible" makes gt_visible_boxes of the keys visible_bbox.
    cfg.DATASETS.EXTRA_BOXES = []

    # Where an image or its annotations are broken: "stop" (name it), or "skip" it, and count.
    cfg.DATALOADER.ON_ERROR = "stop"
    # Compare the sizes in files of DATASETS.REGISTER with the images, before the first run.
    cfg.DATALOADER.CHECK_SIZES = True
    # Larger images are errors: a small file can hold one that fills the memory. 0: no limit.
    cfg.INPUT.MAX_PIXELS = 100_000_000
    _add_augmentation_config(cfg.INPUT)


def _add_augmentation_config(node: CN) -> None:
    """Augmentations beside Detectron2's, all off; their numbers are those of DEIMv2 and its kin."""
    # Instead of MIN_SIZE_TRAIN: an image fits into SIZE x SIZE times a random factor, and what is
    # beyond SIZE is cropped at random (large-scale jitter).
    node.SCALE_JITTER = CN()
    node.SCALE_JITTER.ENABLED = False
    # The smallest and the largest factor.
    node.SCALE_JITTER.RANGE = (0.1, 2.0)
    node.SCALE_JITTER.SIZE = 1024

    # Four images at half their size, two by two: the probability of an image to become one.
    node.MOSAIC = CN()
    node.MOSAIC.PROB = 0.0
    # Shares of the training, from 0 to 1: from which on, and before which.
    node.MOSAIC.START = 0.07
    node.MOSAIC.STOP = 0.5
    # The mosaic is turned by at most so many degrees, shifted by at most this share of its sides,
    # and scaled by a factor of this range.
    node.MOSAIC.ROTATION = 10.0
    node.MOSAIC.TRANSLATION = 0.1
    node.MOSAIC.SCALE = (0.5, 1.5)
    # Objects of whose boxes less than this share is left inside are dropped.
    node.MOSAIC.MIN_VISIBLE = 0.1

    # Two images blended, with the objects of both: the probability.
    node.MIXUP = CN()
    node.MIXUP.PROB = 0.0
    # Shares of the training, from 0 to 1: from which on, and before which.
    node.MIXUP.START = 0.07
    node.MIXUP.STOP = 0.5
    # The image's own share of the blend: the smallest and the largest.
    node.MIXUP.SHARE = (0.45, 0.55)

    # Objects of another image blended in, as the rectangles of their boxes: the probability, where
    # there is no mixup.
    node.COPY_PASTE = CN()
    node.COPY_PASTE.PROB = 0.0
    # Shares of the training, from 0 to 1: from which on, and before which.
    node.COPY_PASTE.START = 0.07
    node.COPY_PASTE.STOP = 0.86
    # At most so many objects, of at least this area in square pixels.
    node.COPY_PASTE.OBJECTS = 3
    node.COPY_PASTE.MIN_AREA = 100.0
    # A rectangle is larger than its box by this share of its width and height on each side.
    node.COPY_PASTE.EXPAND = (0.1, 0.25)
    # The pasted object's share of the blend: the smallest and the largest.
    node.COPY_PASTE.SHARE = (0.45, 0.55)


def _add_ema_config(cfg: CN) -> None:
    # Exponential moving average of the weights over the steps: what is evaluated and exported.
    cfg.MODEL.EMA = CN()
    cfg.MODEL.EMA.ENABLED = False
    # Share of the average that a step keeps, in [0, 1): 0.9998 averages about 5,000 steps.
    cfg.MODEL.EMA.DECAY = 0.9998
    # The decay grows to DECAY over about this many steps, as DECAY (1 - exp(-steps / WARMUP)).
    cfg.MODEL.EMA.WARMUP = 2000
