"""Peak memory of a training step.

    python -m benchmarks.step_memory DETECTOR HEIGHT WIDTH BATCH OBJECTS

prints the bytes by which that process grew at its largest: activations, temporary values and
gradients, but not the weights.
"""

from __future__ import annotations

import sys

from benchmarks.process_memory import growth, run_alone


def peak_bytes(detector: str, image: tuple[int, int], batch: int, objects: int) -> int:
    """On the CPU, in a fresh interpreter."""
    arguments = [detector, *map(str, image), str(batch), str(objects)]
    return run_alone("benchmarks.step_memory", arguments)


def main() -> None:
    """The measuring process."""
    from detectron2.utils.events import EventStorage

    from benchmarks import detectors
    from benchmarks.training_step import TrainingStep

    name = sys.argv[1]
    height, width, batch, objects = map(int, sys.argv[2:6])
    step = TrainingStep(detectors.build(name), detectors.make_inputs(1, (64, 64), 1))
    with EventStorage(0):
        step()  # thread pools and code are loaded
        step.inputs = detectors.make_inputs(batch, (height, width), objects)
        print(growth(step))


if __name__ == "__main__":
    main()
