"""Look for what spoils a training: python -m defcn_d2.data.doctor --config-file CONFIG [KEY VALUE]

Reads the data sets of DATASETS.TRAIN and DATASETS.TEST, or of DATASETS.REGISTER, with all their
images, and prints a sentence for each kind of finding. The exit status is 1 where there are errors,
which spoil the training or make its evaluation worthless, else 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...config.load import load_config
from ...engine.datasets import check_names
from ...engine.reporting import reported
from ...utils.command_line import add_model_arguments, input_files, overrides
from ...utils.errors import UserError
from ...utils.files import check_outputs, write_atomically
from ...utils.printable import printable
from ..readers.findings import Findings
from ..readers.own_data import SPLITS, check_datasets, own_data
from .class_coverage import check_classes
from .object_sizes import check_objects, finest_stride
from .pictures import check_pictures
from .splits import Split, load_split


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if there are errors."""
    parser = argparse.ArgumentParser(
        prog="python -m defcn_d2.data.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", help="write the findings there, too")
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    cfg = load_config(args.config_file, overrides(args))
    if args.json:
        check_outputs([args.json], input_files(args, cfg), "--json")
    report = examine(cfg)
    for split in report["data_sets"]:
        print(printable("{title}: {images:,} images, {objects:,} objects".format(**split)))
    for finding in report["findings"]:
        print(printable("{level}: {sentence}".format(**finding)))
    levels = [finding["level"] for finding in report["findings"]]
    print(f"{levels.count('error')} errors, {levels.count('warning')} warnings")
    if args.json:
        write_atomically(Path(args.json), (json.dumps(report, indent=2) + "\n").encode())
    return int("error" in levels)


def examine(cfg: CfgNode) -> dict[str, Any]:
    """Facts and findings of the data sets of a config.

    Returns:
        ``data_sets``, each with its numbers of images and objects, and ``findings``: ``level``,
        "error" or "warning", ``sentence``, and where they are known ``count`` and ``examples``.
    """
    splits: list[Split] = []
    findings, problems = Findings(), []
    try:
        check_datasets(cfg, SPLITS)
    except UserError as error:
        problems.append(str(error))
    for key in SPLITS.values():
        check_names(cfg.DATASETS[key], f"DATASETS.{key}")
        for name in cfg.DATASETS[key]:
            try:
                splits.append(load_split(cfg, key, name, findings))
            except UserError as error:
                if not own_data(name):  # of which the problem is known
                    problems.append(f"DATASETS.{key}: {error}")
    stride = finest_stride(cfg)
    for split in splits:
        check_objects(cfg, split, stride)
    check_classes(cfg, splits)
    check_pictures(cfg, splits)
    told = [{"level": "error", "sentence": text} for text in problems]
    for split in splits:
        told += [{"level": "warning", "sentence": f"{split.title}: {x}"} for x in split.warnings]
    facts = [
        {
            "title": split.title,
            "images": len(split.records),
            "objects": len(split.boxes),
            "objects_by_class": dict(zip(split.classes, split.counts().tolist())),
        }
        for split in splits
    ]
    found = sorted([*told, *findings.details()], key=lambda finding: finding["level"])
    return {"data_sets": facts, "findings": found}


if __name__ == "__main__":
    sys.exit(run())
