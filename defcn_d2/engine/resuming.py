"""Settings that a resumed run cannot change: those that its optimizer has from the checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode

from ..utils.errors import UserError

#: Key of ``optimizer_settings`` in the trainer's part of a checkpoint.
SETTINGS_KEY = "optimizer_settings"
_NAMES = ("OPTIMIZER", "BASE_LR", "WEIGHT_DECAY")
# Those that may be None, which stands for the value beside them.
_OPTIONAL = {"WEIGHT_DECAY_NORM": "WEIGHT_DECAY", "WEIGHT_DECAY_BIAS": "WEIGHT_DECAY"}


def optimizer_settings(cfg: CfgNode) -> dict[str, Any]:
    """The values of a config that an optimizer keeps in its state, by key."""
    solver = cfg.SOLVER
    own = ("MOMENTUM", "NESTEROV") if solver.OPTIMIZER == "SGD" else ()
    values = {name: solver[name] for name in (*_NAMES, *own)}
    for name, other in _OPTIONAL.items():
        values[name] = solver[other] if solver[name] is None else solver[name]
    factor = solver.BIAS_LR_FACTOR
    values["BIAS_LR_FACTOR"] = 1.0 if factor is None else factor
    return {f"SOLVER.{name}": value for name, value in values.items()}


def settings_of(path: str) -> dict[str, Any] | None:
    """The settings in a checkpoint, without reading its tensors; None where it has none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content["trainer"][SETTINGS_KEY]
    except Exception:  # the checkpointer says what is wrong with the file
        return None


def check_settings(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> None:
    """Refuse what ``--resume`` would pass over in silence.

    Args:
        now: ``optimizer_settings`` of the config.
        then: those of the checkpoint; None: not known.

    Raises:
        UserError: they differ; with both values of each key.
    """
    changed = [
        f"{key} is {now[key]!r}, but was {then[key]!r}"
        for key in now
        if then is not None and key in then and now[key] != then[key]
    ]
    if changed:
        raise UserError(
            f"--resume goes on with the optimizer of the checkpoint, and {'; '.join(changed)}: "
            "give what it was, or begin a training in another OUTPUT_DIR, with the checkpoint as "
            "MODEL.WEIGHTS"
        )
