"""The score with the best F1 of a run, kept in its folder for demos and other programs."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import write_atomically

FILE = "thresholds.json"
AUTO, BEST = "auto", "best"  # words for a confidence
DEFAULT = 0.3  # confidence of what is drawn, where no better one is known


def confidence_of(text: str) -> float | str:
    """A confidence of the command line: a number, "best" or "auto"."""
    return text if text in (AUTO, BEST) else float(text)


def write_thresholds(folder: str | Path, content: Mapping[str, Any]) -> None:
    """Write the file of a run, with ``threshold`` and whatever else explains it."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")


def keep_thresholds(folder: str, name: str) -> None:
    """Keep a copy for the weights ``name``.pth, as later evaluations replace the file."""
    with contextlib.suppress(FileNotFoundError):
        content = Path(folder, FILE).read_bytes()
        write_atomically(Path(folder, f"{name}.{FILE}"), content)


def find_confidence(
    wanted: float | str | None, weights: str, config_file: str = ""
) -> tuple[float | None, str]:
    """The least score of detections.

    Args:
        wanted: a number; "best": that of the best F1 in the last evaluation of the weights; "auto":
            the same where it is stored; None.
        weights: their file; one for them alone comes first, then that of their folder,
        config_file: and that of the config's folder.

    Returns:
        the score, or None: no such limit; and a line that says where it is from, "" where it was
        given.

    Raises:
        UserError: no number in [0, 1]; "best", and nothing is stored; or the file is of no use.
    """
    if wanted not in (AUTO, BEST):
        if wanted is None or not isinstance(wanted, str) and 0 <= wanted <= 1:
            return wanted, ""
        raise UserError(f"the confidence is {wanted!r}: give 0 to 1, or {BEST!r}")
    existing = [path for path in (weights, config_file) if os.path.isfile(path)]
    places = [os.path.join(os.path.dirname(path), FILE) for path in existing]
    for path in (f"{os.path.splitext(weights)[0]}.{FILE}", *places):
        if os.path.isfile(path):
            value, f1 = _read(path)
            return value, f"confidence {value:.3f}, by which F1 was {f1:.3f}: {path}"
    if wanted == BEST:
        raise UserError(
            f"the confidence is {BEST!r}, but there is no {FILE} beside the weights {weights!r}: "
            "evaluate them (--eval-only, with their folder as OUTPUT_DIR), or give a number"
        )
    return None, ""


def _read(path: str) -> tuple[float, float]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        value, f1 = float(content["threshold"]), float(content["f1"])
        if not 0 <= value <= 1:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path!r} holds no score in [0, 1]: evaluate again, or remove it"
        ) from error
    return value, f1
