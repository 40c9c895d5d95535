"""Where it was measured: device, clocks, versions, threads, commit."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
QUERIED = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,"
    "temperature.gpu"
)


def output_of(*command: str) -> str:
    """What a program prints; nothing if it is missing or fails, as this is for the record only."""
    env = {**os.environ, "LC_ALL": "C"}
    try:
        ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def cuda_program(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{home}/bin")


def nvidia_smi() -> dict[str, str]:
    """The GPU's driver, clocks, power and temperature now."""
    values = output_of("nvidia-smi", f"--query-gpu={QUERIED}", "--format=csv,noheader", "--id=0")
    return dict(zip(QUERIED.split(","), values.split(", "), strict=True)) if values else {}


def describe(device: str) -> dict[str, Any]:
    """The machine and what runs on it."""
    lines = (line.partition(":") for line in output_of("lscpu").splitlines())
    cpu = {key.strip(): value.strip() for key, _, value in lines}
    name = cpu.get("Model name") or output_of("sysctl", "-n", "machdep.cpu.brand_string")
    found: dict[str, Any] = {
        "device": device,
        "name": name or platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": {key: value for key, value in cpu.items() if key.endswith("cache")},
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        nvcc = re.search(r"release .*", output_of(cuda_program("nvcc") or "nvcc", "--version"))
        found |= {
            "cpu": found["name"],
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "nvcc": nvcc[0] if nvcc else None,
        }
    with contextlib.suppress(ImportError):  # gpu_check.py has still to build the extension
        from actreg_ext import _C

        compiler = str(_C.build_info()["compiler"])
        found |= {"instructions": _C.cpu_capability(), "compiler": compiler}
    return found | {"before": state(device)}


def state(device: str) -> dict[str, Any]:
    """What may change during the measurement: recorded before and after."""
    now: dict[str, Any] = {"load": os.getloadavg()[0]}
    return now | ({"nvidia_smi": nvidia_smi()} if device == "cuda" else {})


def free_bytes(device: str) -> int:
    """Memory that tensors may still take."""
    if device == "cuda":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    meminfo = Path("/proc/meminfo")
    available = meminfo.exists() and re.search(r"MemAvailable:\s*(\d+)", meminfo.read_text())
    return int(available[1]) * 1024 if available else 2**32


def keep_memory() -> None:
    """Make glibc's malloc keep all that is freed, as tcmalloc and jemalloc do."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    options = {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**28}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt or not all(mallopt(option, value) for option, value in options.items()):
        raise RuntimeError("the preset reused needs the malloc of glibc")
