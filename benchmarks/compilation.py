"""Compiles the providers before the timing, in parallel, into the compiler's cache on the disk.

The session then reads from that cache. python -m benchmarks --fill-only does this alone.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
import torch._inductor.config

from . import machine
from .cases import TRAINED, Case, Planned
from .correctness import without_dropout
from .places import graphs_that_stay, inputs, subject
from .providers import PROVIDERS


def compile_one(case: Case, name: str, device: str) -> None:
    """Leave the compiled code of a case in the cache."""
    # What the tuner measures beside other processes must not be kept.
    torch._inductor.config.autotune_local_cache = False
    # Networks are checked without dropout.
    variants = [case] if case.place == "call" else [case, without_dropout(case)]
    with graphs_that_stay():
        for variant in variants:
            xs, dy = inputs(variant, device)
            compiled = subject(variant, PROVIDERS[name], xs[:1], dy)
            compiled.runs("step" if variant.place in TRAINED else "both")[0]()


def fill(plan: list[Planned], device: str) -> int:
    """Compile everything, provider by provider, and return how many failed."""
    tasks = [
        (item.case, name)
        for name, provider in PROVIDERS.items()
        for item in plan
        if name in item.providers and provider.mode is not None
    ]
    if not tasks:
        return 0
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    largest = max(case.elements for case, _ in tasks)
    # Up to ten tensors of float64 for each process, in half of the memory.
    room = machine.free_bytes(device) // 2 // (10 * 8 * largest)
    workers = max(1, min(os.cpu_count() or 1, len(tasks), room))
    failures = 0
    spawn = multiprocessing.get_context("spawn")
    # The compiler writes the number of threads into its code: the children have that of the parent.
    with ProcessPoolExecutor(workers, spawn) as pool:
        pending = {pool.submit(compile_one, *task, device): task for task in tasks}
        for count, done in enumerate(as_completed(pending), 1):
            case, name = pending[done]
            outcome = "failed" if done.exception() else "compiled"
            failures += outcome == "failed"
            print(f"{count}/{len(tasks)} {outcome}: {name} {case.describe()}", file=sys.stderr)
    return failures
