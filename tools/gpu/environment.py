"""The machine as the JSON has it: card, driver, versions.

    python tools/gpu/environment.py {cuda,cpu}

prints one line of JSON, in a process of its own, so that the one that starts the parts holds no
memory of the GPU.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import detectron2
import torch


def environment(device: str) -> dict[str, object]:
    """Names and versions for a device, "cuda" or "cpu".

    Raises:
        SystemExit: there is no CUDA device.
    """
    found: dict[str, object] = {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if device == "cpu":
        return found
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise SystemExit(
            f"--device cuda: PyTorch {torch.__version__}, built {built}, finds no CUDA device; see "
            "nvidia-smi, or take --device cpu"
        )
    card = torch.cuda.get_device_properties(0)
    return {
        **found,
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "memory_gib": round(card.total_memory / 2**30, 1),
        "cards": torch.cuda.device_count(),
        "driver": driver(),
        "cudnn": torch.backends.cudnn.version(),
    }


def driver() -> str:
    """The driver's version by nvidia-smi; "unknown" where that is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.split() or ["unknown"])[0]


if __name__ == "__main__":
    print(json.dumps(environment(sys.argv[1])))
