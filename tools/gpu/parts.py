"""The parts of the check: a name, a command, a time limit, and what stands in for it on a CPU.

In a command, ``{figures}`` is the Markdown file for the part's tables, ``{folder}`` a folder of its
own and ``{processes}`` 2 where there are two GPUs, else 1.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

BENCHMARK = "tools/benchmarks {0} --output {{figures}} --device"
TRAINING = "tools/gpu/short_training.py --folder {folder} --output {figures} --device"
# 57.7 AP after 500 iterations in docs/study.md, deviation over the seeds 0.6.
TARGET = "--iterations 500 --target 54"
REAL = "--image 800 1344"
SMALL = "--image 64 64"


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        what: for ``--list``.
        limit: seconds, after which it is ended.
        cuda: what Python runs on a machine with a GPU.
        cpu: the same on the CPU, small; empty where only a GPU can do it.
    """

    name: str
    what: str
    limit: int
    cuda: str
    cpu: str = ""

    def command(self, device: str, **places: object) -> list[str]:
        """Arguments of Python, empty where the part needs a GPU and ``device`` is "cpu"."""
        words = shlex.split(self.cuda if device == "cuda" else self.cpu)
        return [word.format(**places) for word in words]


def _benchmark(
    name: str, what: str, limit: int, subcommand: str, cuda: str = "", cpu: str | None = None
) -> Part:
    start = BENCHMARK.format(subcommand)
    return Part(
        name, what, limit, f"{start} cuda {cuda}", "" if cpu is None else f"{start} cpu {cpu}"
    )


#: What cannot be lost comes first: the whole check has a limit, too.
PARTS = (
    Part(
        "build",
        "compile the CUDA operators for this card",
        200,
        "tools/gpu/build.py --output {figures}",
    ),
    Part(
        "tests",
        "the tests that name CUDA",
        120,
        "-m pytest tests/ops tests/engine tests/modeling -q -k cuda -p no:cacheprovider",
        "-m pytest tests/ops/test_ops_cuda.py -q -k cpu -p no:cacheprovider",
    ),
    _benchmark(
        "determinism",
        "operators: 100 runs, and against the CPU",
        60,
        *("determinism", REAL, f"{SMALL} --runs 3"),
    ),
    _benchmark(
        "op",
        "3D max filter: against both compositions and the bandwidth",
        90,
        *("op", f"{REAL} --rounds 5", f"{SMALL} --rounds 2 --no-memory"),
    ),
    _benchmark(
        "overlap",
        "overlap_with_better: against its composition",
        40,
        *("overlap", f"{REAL} --rounds 7", f"{SMALL} --rounds 2"),
    ),
    Part(
        "training",
        "short training with AMP on the built-in data, to 54 AP",
        150,
        f"{TRAINING} cuda --precision float16 {TARGET}",
        f"{TRAINING} cpu --iterations 2 --images 8",
    ),
    Part(
        "torchrun",
        "the same by torchrun and NCCL, on up to two GPUs",
        120,
        f"{TRAINING} cuda --precision float16 {TARGET} --torchrun {{processes}}",
        f"{TRAINING} cpu --iterations 2 --images 8 --torchrun 1",
    ),
    _benchmark(
        "synchronizations",
        "a step's waits for the GPU, by the profiler",
        60,
        *("synchronizations", REAL),
    ),
    _benchmark(
        "modes",
        "a step in float16, bfloat16 and channels_last; peak memory",
        90,
        "modes",
        f"{REAL} --modes float32 float16 bfloat16 'float32, channels_last' "
        "'float16, channels_last' 'bfloat16, channels_last'",
        f"{SMALL} --rounds 2 --modes float32 'float32, channels_last'",
    ),
    _benchmark(
        "step",
        "a step against Detectron2's detectors; peak memory",
        90,
        *("step", REAL, f"{SMALL} --rounds 2 --detectors POTO --only time"),
    ),
    _benchmark(
        "inference",
        "inference against Detectron2's detectors",
        60,
        *("inference", REAL, "--image 256 320 --rounds 2 --end-to-end-rounds 0"),
    ),
    _benchmark(
        "matching",
        "POTO's matching against the full matrix",
        60,
        *("matching", "--rounds 5", "--rounds 2 --objects 7"),
    ),
    _benchmark(
        "compile",
        "a step with torch.compile",
        180,
        "modes",
        f"{REAL} --modes 'bfloat16, channels_last' 'bfloat16, channels_last, compiled'",
    ),
)
