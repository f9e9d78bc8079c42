"""End-to-end object detection with a fully convolutional network, for Detectron2.

``add_defcn_config(cfg)`` adds the configuration keys, and ``register_datasets(cfg)`` registers the
data that ``DATASETS.REGISTER`` in them names. Importing this package registers the
meta-architecture ``DeFCN``, its backbones, matchers and the built-in data sets.
"""

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

# Threads that wait for work sleep, see engine/cpu.py. Read when torch is imported, and so of no
# effect, nor claimed, where it has been.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    with warnings.catch_warnings():
        # by losses that Detectron2 and fvcore script while this imports them
        warnings.filterwarnings("ignore", ".*torch.jit.script")
        import detectron2.modeling  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "defcn_d2 needs Detectron2, which is not installed; install it as its INSTALL.md says or, "
        "from a clone of defcn_d2, with `python tools/setup/install_detectron2.py`",
        name="detectron2",
    ) from error

from . import data  # noqa: F401  (registers the built-in data sets)
from .config.defaults import add_defcn_config
from .config.files import config_names, get_config
from .data import register_datasets
from .modeling.backbone import (
    build_defcn_narrow_fpn_backbone,
    build_defcn_resnet_fpn_backbone,
)
from .modeling.matcher import MATCHER_REGISTRY
from .modeling.meta_arch import DeFCN
from .weights.release import convert_cvpods_state_dict

if TYPE_CHECKING:
    from .engine.predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "MATCHER_REGISTRY",
    "DeFCN",
    "Predictor",
    "add_defcn_config",
    "build_defcn_narrow_fpn_backbone",
    "build_defcn_resnet_fpn_backbone",
    "config_names",
    "convert_cvpods_state_dict",
    "get_config",
    "register_datasets",
]


def __getattr__(name: str) -> Any:
    """``Predictor``, which is imported when it is asked for: it needs much of Detectron2."""
    if name == "Predictor":
        from .engine.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
