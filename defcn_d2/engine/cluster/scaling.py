"""A config made for one number of workers, on another (``SOLVER.REFERENCE_WORLD_SIZE``)."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from ...utils.errors import UserError


def scale_to_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Detectron2's ``DefaultTrainer.auto_scale_workers``, for the keys of this project as well.

    Detectron2 scales ``SOLVER.IMS_PER_BATCH`` and ``BASE_LR`` by s = workers over reference, and
    all numbers of steps by 1 / s. Added to them: ``MODEL.EMA.WARMUP`` is a number of steps, and
    ``MODEL.EMA.DECAY`` becomes DECAY^s, as a step stands for s of the reference.
    ``SOLVER.ACCUMULATE`` stays: the images of a micro batch on a worker remain as many.

    Args:
        num_workers: processes of the run.

    Returns:
        the same config where the reference is 0 or ``num_workers``.

    Raises:
        UserError: ``SOLVER.IMS_PER_BATCH`` is no multiple of the reference.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, num_workers):
        return cfg
    if reference < 0 or cfg.SOLVER.IMS_PER_BATCH % reference:
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}, but must be 0 or divide "
            f"SOLVER.IMS_PER_BATCH, {cfg.SOLVER.IMS_PER_BATCH}"
        )
    frozen = cfg.is_frozen()
    cfg = DefaultTrainer.auto_scale_workers(cfg, num_workers)  # a copy
    cfg.defrost()
    scale = num_workers / reference
    cfg.MODEL.EMA.DECAY = cfg.MODEL.EMA.DECAY**scale
    cfg.MODEL.EMA.WARMUP = round(cfg.MODEL.EMA.WARMUP / scale)
    if frozen:
        cfg.freeze()
    return cfg
