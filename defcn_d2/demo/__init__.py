"""Detections drawn on images and videos: what ``demo/demo.py`` runs."""

from .demo_command import run

__all__ = ["run"]
