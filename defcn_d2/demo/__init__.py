"""Detections drawn on images and videos: what ``demo/demo.py`` runs."""

from .command_line import run

__all__ = ["run"]
