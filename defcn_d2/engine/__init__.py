"""Training and evaluation: what ``train_net.py`` runs."""

from .command_line import main, run
from .configuration import load_config
from .errors import UserError, reported
from .optimizer import build_optimizer
from .predictor import Predictor
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
