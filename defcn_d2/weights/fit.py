"""Weights of a detector against the model that is to have them, by names and shapes."""

import os
from collections.abc import Mapping
from typing import Any

from .reader import CheckpointError
from .release import is_derived

_MOST_LISTED = 8  # of each kind


def check_fit(
    weights: Mapping[str, Any], own: Mapping[str, Any], path: str, output_dir: str = ""
) -> None:
    """Refuse weights of a detector that are not those of the model.

    Args:
        weights: name to tensor, from the file.
        own: the state dict of the model.
        path: of the file, for the message.
        output_dir: of this run, whose ``config.yaml`` is the present one.

    Raises:
        CheckpointError: with the names that do not fit, and the remedy.
    """
    shapes = {name: _shape(value) for name, value in weights.items()}
    expected = {name: _shape(value) for name, value in own.items()}
    misfits = {
        "missing": [
            f"{name} {shape}"
            for name, shape in expected.items()
            if name not in shapes and not is_derived(name)
        ],
        "unexpected": [f"{name} {shape}" for name, shape in shapes.items() if name not in expected],
        "of another shape": [
            f"{name} {shapes[name]}, in the model {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    if any(misfits.values()):
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in misfits.items())
        refusal = (
            f"weights {path!r} are of another model ({counts}): take "
            f"{_config_of(path, output_dir)}, or, to start training from what does fit, convert "
            "the file: python -m defcn_d2.weights.convert IN OUT --partial. Not fitting:"
        )
        raise CheckpointError("\n".join([refusal, *_lines(misfits)]))


def _lines(misfits: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for kind, names in misfits.items():
        lines += [f"  {kind}: {name}" for name in names[:_MOST_LISTED]]
        if len(names) > _MOST_LISTED:
            lines.append(f"  {kind}: {len(names) - _MOST_LISTED} more")
    return lines


def _shape(value: Any) -> str:
    return str(tuple(value.shape))


def _config_of(path: str, output_dir: str) -> str:
    """The config beside a file; a run has overwritten that of its own folder with the present."""
    folder = os.path.dirname(os.path.abspath(path))
    config = os.path.join(os.path.dirname(path), "config.yaml")
    if folder != os.path.abspath(output_dir) and os.path.isfile(config):
        return f"{config}, the config of its run"
    return "the config that it was trained with"
