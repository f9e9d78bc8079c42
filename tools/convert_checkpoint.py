"""Convert weights of the original release to a file for any Detectron2 tool.

    python tools/convert_checkpoint.py IN OUT [--partial]

``train_net.py`` takes the release's files as they are (``MODEL.WEIGHTS IN``). The converted file
holds the weights alone, without optimizer and iteration, and prints the configs that they fit.
"""

import argparse
import sys

import torch

from defcn_d2.weights.checkpointer import CheckpointError, read_checkpoint, replacing
from defcn_d2.weights.release import convert_cvpods_state_dict, describe_weights, fitting_configs


def convert(source: str, target: str, partial: bool = False) -> dict[str, torch.Tensor]:
    """Write the weights of the file ``source`` to the file ``target``, under our names.

    Args:
        partial: mark them as a start for another model, which takes what fits.

    Returns:
        the weights.

    Raises:
        ValueError: ``source`` cannot be read, or holds no such weights.
        OSError: ``source`` cannot be opened, or ``target`` not be written.
    """
    try:
        weights = convert_cvpods_state_dict(read_checkpoint(source))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{source!r} has {error}; choose another file") from error
    with replacing(target) as file:
        torch.save({"model": weights, **({"partial": True} if partial else {})}, file)
    return weights


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Convert weights of the original DeFCN release, or shrink a checkpoint of "
        "this project to its weights."
    )
    parser.add_argument("source", metavar="IN", help="file of the release (.pth)")
    parser.add_argument("target", metavar="OUT", help="file to write (.pth)")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="let other models take what fits, e.g. to train for another number of classes",
    )
    args = parser.parse_args(argv)
    try:
        weights = convert(args.source, args.target, args.partial)
    except OSError as error:
        name = error.filename or args.target
        print(f"error: {name!r}: {error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(value.numel() for value in weights.values())
    print(f"{args.target}: {len(weights)} tensors, {size / 1e6:.1f} million numbers")
    for key, value in describe_weights(weights).items():
        print(f"  {key} {value!r}")
    print("fits:", " ".join(fitting_configs(weights)) or "none of the configs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
