"""Peak memory of one call of the 3D max filter on the CPU, in a process of its own.

    python -m benchmarks.op_memory COMPETITOR {inference,training} HEIGHT WIDTH BATCH

prints the bytes by which the process grew at its largest.
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks.process_memory import growth, run_alone


def peak_bytes(competitor: str, mode: str, image: tuple[int, int], batch: int) -> int:
    """Measure in a fresh interpreter."""
    arguments = [competitor, mode, *map(str, image), str(batch)]
    return run_alone("benchmarks.op_memory", arguments)


def main() -> None:
    """The measuring process."""
    import torch

    from benchmarks.op_competitors import COMPETITORS, forward_and_backward, make_levels

    competitor, mode = sys.argv[1:3]
    height, width, batch = map(int, sys.argv[3:6])
    max_filter = COMPETITORS[competitor]

    def measure(image: tuple[int, int]) -> int:
        levels = make_levels(batch, image, torch.float32, torch.contiguous_format, "cpu")
        grads = [torch.randn_like(level) for level in levels]
        leaves = [level.requires_grad_(mode == "training") for level in levels]
        if mode == "inference":
            return growth(partial(max_filter, leaves))
        return growth(partial(forward_and_backward, max_filter, leaves, grads))

    measure((64, 64))  # thread pools and code are loaded
    print(measure((height, width)))


if __name__ == "__main__":
    main()
