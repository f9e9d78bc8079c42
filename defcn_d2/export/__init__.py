"""Trained detectors as files for other runtimes: what ``tools/export.py`` runs."""

from .artifacts import FORMATS, Artifact, export_exported, export_onnx
from .description import describe
from .detector import DeployedDetector
from .export_command import run
from .verification import (
    VerificationError,
    drawn_images,
    make_batches,
    verify_artifact,
    verify_deployed,
)

__all__ = [
    "FORMATS",
    "Artifact",
    "DeployedDetector",
    "VerificationError",
    "describe",
    "drawn_images",
    "export_exported",
    "export_onnx",
    "make_batches",
    "run",
    "verify_artifact",
    "verify_deployed",
]
