#!/usr/bin/env python
"""Measure parts of the package against what they replace; prints Markdown.

    python tools/benchmarks SUBCOMMAND [--device cpu] [--output table.md]

Every subcommand is a module of ``tools/benchmarks`` with ``DESCRIPTION``, ``add_arguments(parser)``
and ``run(arguments) -> str``. Results are compared for equality before anything is timed, and all
competitors of a row run in turn in one process.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]  # this checkout's package, this one

SUBCOMMANDS = (
    "op",
    "determinism",
    "overlap",
    "matching",
    "step",
    "modes",
    "synchronizations",
    "inference",
    "deploy",
    "evaluation",
)


def main() -> None:
    """Run the subcommand named on the command line."""
    parser = argparse.ArgumentParser(description="Benchmarks; the result is a Markdown table.")
    subparsers = parser.add_subparsers(dest="subcommand", required=True)
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in SUBCOMMANDS}
    for name, module in modules.items():
        subparser = subparsers.add_parser(name, help=module.DESCRIPTION)
        subparser.add_argument("--output", type=Path, help="also write the table to this file")
        module.add_arguments(subparser)
    arguments = parser.parse_args()
    table = modules[arguments.subcommand].run(arguments)
    print(table)
    if arguments.output:
        arguments.output.write_text(table + "\n")


if __name__ == "__main__":
    main()
