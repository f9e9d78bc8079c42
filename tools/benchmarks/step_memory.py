"""Peak memory of a training step.

    python -m benchmarks.step_memory DETECTOR HEIGHT WIDTH BATCH OBJECTS CHANNELS_LAST

prints the bytes by which that process grew at its largest: activations, temporary values and
gradients, but not the weights.
"""

from __future__ import annotations

import sys

from benchmarks.process_memory import growth, run_alone


def peak_bytes(
    detector: str, image: tuple[int, int], batch: int, objects: int, channels_last: bool = False
) -> int:
    """On the CPU, in a fresh interpreter."""
    numbers = (*image, batch, objects, int(channels_last))
    return run_alone("benchmarks.step_memory", [detector, *map(str, numbers)])


def main() -> None:
    """The measuring process."""
    from detectron2.utils.events import EventStorage

    from benchmarks import detectors
    from benchmarks.training_step import TrainingStep

    name = sys.argv[1]
    height, width, batch, objects, channels_last = map(int, sys.argv[2:7])
    model = detectors.build(name, channels_last=bool(channels_last))
    step = TrainingStep(model, detectors.make_inputs(1, (64, 64), 1))
    with EventStorage(0):
        step()  # thread pools and code are loaded
        step.inputs = detectors.make_inputs(batch, (height, width), objects)
        print(growth(step))


if __name__ == "__main__":
    main()
