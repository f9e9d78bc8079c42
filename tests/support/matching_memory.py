"""Peak memory of every matcher in a heap of 1,000 boxes, in a process of its own.

    python tests/support/matching_memory.py

prints a matcher and the MiB by which the process grew at its largest, line by line. glibc has to be
told (``MALLOC_ENVIRONMENT``) to hand larger blocks straight back to the system, so that the figure
is what is alive, not what was ever freed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import make_priors, random_instances, random_predictions

from defcn_d2.modeling.matcher import MATCHER_REGISTRY
from defcn_d2.structures import Predictions, Priors

MALLOC_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
HEIGHT, WIDTH, NUM_GTS, NUM_CLASSES = 800, 1344, 1000, 20


def status(field: str) -> int:
    """KiB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


@torch.no_grad()
def peak(name: str, priors: Priors, predictions: Predictions, num_gts: int) -> float:
    """MiB of one call."""
    matcher = MATCHER_REGISTRY.get(name)()
    gt = random_instances(HEIGHT, WIDTH, num_gts, NUM_CLASSES, min_size=8)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = status("VmRSS")
    matcher(priors, predictions, gt)
    return (status("VmHWM") - before) / 1024


def main() -> None:
    """The measuring process."""
    torch.set_num_threads(1)
    priors = make_priors(HEIGHT, WIDTH)
    predictions = random_predictions(priors, NUM_CLASSES, None)
    predictions = Predictions(
        predictions.cls_logits, predictions.boxes.double(), predictions.quality_logits
    )
    for name in MATCHER_REGISTRY.names():
        peak(name, priors, predictions, num_gts=2)  # code and thread pools are loaded
        print(name, f"{peak(name, priors, predictions, NUM_GTS):.1f}", flush=True)


if __name__ == "__main__":
    main()
