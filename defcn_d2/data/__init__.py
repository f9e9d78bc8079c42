"""Data sets: importing this package registers them; the built-in ones are drawn when asked for."""

from .builtin import register_all, register_shapes, register_shapes_crowd
from .errors import DatasetError
from .readers.crowdhuman import load_crowdhuman, register_crowdhuman
from .readers.own_data import register_datasets
from .synthetic.generation import datasets_root

__all__ = [
    "DatasetError",
    "datasets_root",
    "load_crowdhuman",
    "register_crowdhuman",
    "register_datasets",
    "register_shapes",
    "register_shapes_crowd",
]

register_all(datasets_root())
