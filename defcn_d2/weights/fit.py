"""Weights of a detector against the model that is to have them, by names and shapes."""

import os
from collections.abc import Collection, Mapping
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


def class_layers(weights: Mapping[str, Any], own: Mapping[str, Any], num_classes: int) -> list[str]:
    """Names whose only misfit is another number of classes in the file.

    Such are all the weights that do not fit if each has, along its first dimension, a multiple of
    ``num_classes`` in the model and the same multiple of one other number in the file.

    Args:
        weights: name to tensor, from the file.
        own: the state dict of the model.
        num_classes: of the model.

    Returns:
        the names; none where anything else does not fit.
    """
    shapes = {
        name: (tuple(weights[name].shape), tuple(value.shape))
        for name, value in own.items()
        if name in weights
    }
    misfits = [name for name, (theirs, ours) in shapes.items() if theirs != ours]
    numbers = set()
    for theirs, ours in map(shapes.__getitem__, misfits):
        each = ours[0] // num_classes if ours else 0
        if not each or ours[0] % num_classes or not theirs or theirs[0] % each:
            return []
        if theirs[1:] != ours[1:]:
            return []
        numbers.add(theirs[0] // each)
    return misfits if len(numbers) == 1 else []


def check_loaded(
    missing: Collection[str], parameters: Collection[str], path: str, complete: bool
) -> None:
    """Refuse a file that leaves what it is loaded for to random numbers.

    Args:
        missing: names of the model's state that the file has not given.
        parameters: names of the model's parameters.
        path: of the file, for the message.
        complete: all must come from the file; otherwise at least one parameter.

    Raises:
        CheckpointError: with the names that have no value, and the remedy.
    """
    given = [name for name in parameters if name not in missing]
    left = [name for name in missing if not is_derived(name)]
    if complete and left:
        sentence = (
            f"weights {path!r} give {len(given)} of {len(parameters)} parameters, and the model "
            "would go on with random numbers for the rest: give the file of a whole detector and "
            "the config that it was trained with. Not given:"
        )
        raise CheckpointError("\n".join([sentence, *_lines({"missing": left})]))
    if parameters and not given:
        raise CheckpointError(
            f"weights {path!r} give none of the model's {len(parameters)} parameters: no name and "
            "shape fits; choose another file, or set MODEL.WEIGHTS to '' to train from scratch"
        )


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
