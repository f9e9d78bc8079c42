"""Pictures that explain a detector: what ``tools/visualize.py`` draws."""

from .command_line import run

__all__ = ["run"]
