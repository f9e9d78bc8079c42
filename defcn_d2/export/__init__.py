"""Trained detectors as files for other runtimes: what ``tools/export.py`` runs."""

from .artifacts import FORMATS, Artifact, export_exported, export_onnx, export_openvino
from .description import describe
from .detector import DeployedDetector
from .export_command import run
from .raw_detector import RawDetector
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
    "RawDetector",
    "VerificationError",
    "describe",
    "drawn_images",
    "export_exported",
    "export_onnx",
    "export_openvino",
    "make_batches",
    "run",
    "verify_artifact",
    "verify_deployed",
]
