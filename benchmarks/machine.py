"""Where it was measured: device, clocks, versions, threads, commit."""

from __future__ import annotations

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
    """What a program prints; nothing where it is missing or fails, as it is for the record only."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cuda_program(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{home}/bin")


def nvidia_smi() -> dict[str, str]:
    """The GPU's driver, clocks, power and heat now."""
    values = output_of("nvidia-smi", f"--query-gpu={QUERIED}", "--format=csv,noheader", "--id=0")
    return dict(zip(QUERIED.split(","), values.split(", "), strict=True)) if values else {}


def describe(device: str) -> dict[str, Any]:
    """The machine and what runs on it."""
    found: dict[str, Any] = {
        "device": device,
        "name": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": _caches(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device == "cuda":
        found |= _gpu()
    return found | _build() | {"before": clocks(device)}


def clocks(device: str) -> dict[str, Any]:
    """What may change while it is measured: taken before and after."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    now: dict[str, Any] = {"load": load, "cpu_mhz": _cpu_mhz()}
    return now | ({"nvidia_smi": nvidia_smi()} if device == "cuda" else {})


def free_bytes(device: str) -> int:
    """That tensors may still take."""
    if device == "cuda":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    if available := re.search(r"MemAvailable:\s*(\d+)", _read("/proc/meminfo")):
        return int(available[1]) * 1024
    return (_memory() or 2**33) // 2


def keep_memory() -> None:
    """Have malloc keep all that is freed, as tcmalloc and jemalloc do; glibc's, if it is that."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    options = {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**28}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt or not all(mallopt(option, value) for option, value in options.items()):
        raise RuntimeError("the preset reused needs the malloc of glibc")


def _build() -> dict[str, Any]:
    """Of the extension; nothing where it is still to be built."""
    try:
        from actreg_ext import _C
    except ImportError:
        return {}
    return {"instructions": _C.cpu_capability(), "compiler": str(_C.build_info()["compiler"])}


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    nvcc = re.search(r"release .*", output_of(cuda_program("nvcc") or "nvcc", "--version"))
    return {
        "cpu": _cpu_name(),
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "nvcc": nvcc[0] if nvcc else None,
    }


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cpu_name() -> str:
    if found := re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo")):
        return found[1].strip()
    return output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def _cpu_mhz() -> float | None:
    """The mean of all cores; a virtual machine says what the host promised, not what it does."""
    found = [float(mhz) for mhz in re.findall(r"cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"))]
    return round(sum(found) / len(found)) if found else None


def _caches() -> dict[str, str]:
    """Of the first core."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = _read(index / "level").strip(), _read(index / "type").strip()
        if kind != "Instruction":
            found[f"L{level}"] = _read(index / "size").strip()
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
