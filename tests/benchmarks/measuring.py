"""What benchmarks share: a clock, the machine that was measured, masks to measure with. Needs neither Ray nor
anything of ``pipelines``."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from samtok.checkout import commit

PACKAGES = ("torch", "transformers", "sam2", "numpy", "trl", "ray")


def wait() -> None:
    """Waits until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Returns what a piece of work takes on the clock."""
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def machine(device: str = "cpu") -> dict[str, Any]:
    """Returns hardware, versions, commit and date of a measurement; the GPU's if it is on one."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: number for name in PACKAGES if (number := _version(name))},
        "gpu": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_processors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    return found


def ellipses(count: int, side: int, *, seed: int = 0) -> list[np.ndarray]:
    """Draws masks of side x side pixels."""
    rng, pixels = np.random.default_rng(seed), np.arange(side)
    found = []
    for _ in range(count):
        centre, radius = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.05, 0.2, 2) * side
        rows, columns = (((pixels - c) / r) ** 2 for c, r in zip(centre, radius, strict=True))
        found.append(rows[:, None] + columns < 1)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123 a file of the kernel's
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
