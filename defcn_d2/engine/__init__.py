"""Training and evaluation: what ``train_net.py`` runs."""

from .configuration import load_config
from .errors import UserError, reported
from .main import main, run
from .optimizer import build_optimizer
from .trainer import Trainer

__all__ = ["Trainer", "UserError", "build_optimizer", "load_config", "main", "reported", "run"]
