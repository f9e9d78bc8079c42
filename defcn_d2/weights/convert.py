"""Conversion of weights to a file for any Detectron2 tool: ``python -m`` of this module.

``train_net.py`` takes the release's files as they are (``MODEL.WEIGHTS IN``). The converted file
holds the weights alone, without optimizer and iteration.
"""

import argparse
import sys

import torch

from ..engine.reporting import reported
from ..utils.errors import as_user_error
from ..utils.files import replacing
from .reader import CheckpointError, check_weights, read_checkpoint
from .release import convert_cvpods_state_dict


def convert(source: str, target: str, partial: bool = False) -> dict[str, torch.Tensor]:
    """Write the weights of the file ``source`` to the file ``target``, under our names.

    Args:
        partial: mark them as a start for another model, which takes what fits.

    Returns:
        the weights.

    Raises:
        CheckpointError: ``source`` is damaged, or holds no such weights.
        UserError: ``source`` cannot be opened, or ``target`` not be written.
    """
    with as_user_error(OSError, f"{source!r} cannot be read ({{}}); choose another file"):
        content = read_checkpoint(source)
    check_weights(content.get("model", content), source)
    try:
        weights = convert_cvpods_state_dict(content)
    except ValueError as error:
        raise CheckpointError(f"{source!r} has {error}; choose another file") from error
    with (
        as_user_error(OSError, f"{target!r} cannot be written ({{}}); choose another place"),
        replacing(target) as file,
    ):
        torch.save({"model": weights, **({"partial": True} if partial else {})}, file)
    return weights


@reported
def run(argv: list[str] | None = None) -> None:
    """Run the command; ``reported`` makes it return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m defcn_d2.weights.convert",
        description="Convert weights of the original DeFCN release, or shrink a checkpoint of "
        "this project to its weights."
    )
    parser.add_argument("source", metavar="IN", help="file of the release (.pth)")
    parser.add_argument("target", metavar="OUT", help="file to write (.pth)")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="mark the weights as a start for other models, which take what fits, e.g. to train "
        "for another number of classes",
    )
    args = parser.parse_args(argv)
    weights = convert(args.source, args.target, args.partial)
    size = sum(value.numel() for value in weights.values())
    print(f"{args.target}: {len(weights)} tensors, {size / 1e6:.1f} million numbers")


if __name__ == "__main__":
    sys.exit(run())
