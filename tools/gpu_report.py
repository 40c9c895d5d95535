"""What tools/gpu_check.py writes down: the machine it ran on, and the timings held to budgets."""

from __future__ import annotations

import os
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
# direction, rival, with dropout or without (None: both), the largest ratio of our time to its.
BUDGETS = [
    ("forward", "floor", None, 1.10),
    ("backward", "floor", None, 1.10),
    *[(direction, "eager", None, 1 / 4) for direction in ("forward", "backward")],
    *[
        (direction, rival, drops, 1 / 1.5 if drops else 1.0)
        for rival in ("torch.compile", "max-autotune")
        for direction in ("forward", "backward")
        for drops in (True, False)
    ],
]


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


def describe_machine(device: str) -> dict[str, Any]:
    nvcc = re.search(r"release .*", output_of(cuda_program("nvcc") or "nvcc", "--version"))
    found = {
        "device": "cpu",
        "nvidia_smi": nvidia_smi(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": nvcc[0] if nvcc else None,
        "cpus": os.cpu_count(),
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
    return found


def held_to_budgets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each budget the worst row, and how many are over it."""
    found = []
    for direction, rival, drops, limit in BUDGETS:
        ours = [r for r in rows if (r["direction"], r["rival"]) == (direction, rival)]
        ours = [r for r in ours if drops in (None, r["p"] > 0)]
        if not ours:
            continue
        worst = max(ours, key=lambda r: r["ratio"])
        found.append(
            {
                "direction": direction,
                "rival": rival,
                "dropout": drops,
                "limit": limit,
                "worst": worst["ratio"],
                "at": f"{worst['activation']} {worst['dtype']} p={worst['p']}",
                "over": sum(r["ratio"] > limit for r in ours),
                "rows": len(ours),
            }
        )
    return found


def table(budgets: list[dict[str, Any]]) -> str:
    form = "{:40} {:>7} {:>7}  {:30} {}"
    lines = [form.format("our time / the rival's", "budget", "worst", "where", "over")]
    for b in budgets:
        dropout = {None: "", True: " with dropout", False: " without"}[b["dropout"]]
        what = f"{b['direction']} / {b['rival']}{dropout}"
        numbers = (f"{b['limit']:.2f}", f"{b['worst']:.2f}", b["at"])
        lines.append(form.format(what, *numbers, f"{b['over']} of {b['rows']}"))
    return "\n".join(lines)
