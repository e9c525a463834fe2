"""The machine that figures were measured on, in words: a latency without it means nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """CPU model, cores this process may use, memory, GPUs if any, operating system, Python."""
    gpus = _gpus()
    return {
        **({"gpus": gpus} if gpus else {}),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def features() -> list[str]:
    """What the processor can do (``avx2``, ``avx512_vnni``, ...), sorted; empty where nothing tells.

    Kernels are chosen by it, and quantized weights too: the same pass gives others elsewhere.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return []
    fields = ((line.partition(":")[0].strip(), line.partition(":")[2]) for line in lines)
    wanted = ("flags", "Features", "CPU part")  # x86, ARM, ARM's model
    return sorted({word for name, value in fields if name in wanted for word in value.split()})


def _gpus() -> list[str]:
    """Models of the NVIDIA GPUs, as the driver names them: no library is imported for it."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found


def _cpu() -> str:
    try:
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0
