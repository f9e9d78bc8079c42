"""Training and evaluation: what ``train_net.py`` runs."""

from ..config.load import load_config
from ..utils.errors import UserError
from .image_predictor import Predictor
from .optimizer import build_optimizer
from .reporting import reported
from .train_command import main, run
from .trainer import Trainer

__all__ = [
    "Predictor",
    "Trainer",
    "UserError",
    "build_optimizer",
    "load_config",
    "main",
    "reported",
    "run",
]
