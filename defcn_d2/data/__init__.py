"""Data sets: importing this package registers the built-in ones, drawn when first asked for."""

from .builtin import register_shapes
from .generation import DatasetError, datasets_root

__all__ = ["DatasetError", "datasets_root", "register_shapes"]

for _split in ("train", "val"):
    register_shapes(f"shapes_{_split}", datasets_root(), _split)
