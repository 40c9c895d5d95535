"""Fills the compiler's cache on the disk before the timing, in parallel: a process for each core.

What is then compiled in the session is read from there. python -m benchmarks --fill-only does this
alone, beside work that needs no quiet.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
import torch._inductor.config

from . import machine
from .cases import TRAINED, Case, Planned
from .correctness import without_dropout
from .places import graphs_that_stay, inputs, subject
from .providers import PROVIDERS


def compile_one(case: Case, name: str, device: str) -> None:
    """Leave what the compiler makes of a case in its cache."""
    provider = PROVIDERS[name]
    # What the tuner measures beside other processes is not to be kept.
    torch._inductor.config.autotune_local_cache = False
    # Blocks are checked without dropout.
    variants = [case] if case.place == "call" else [case, without_dropout(case)]
    with graphs_that_stay():
        for variant in variants:
            xs, dy = inputs(variant, device)
            compiled = subject(variant, provider, xs[:1], dy)
            compiled.runs("step" if variant.place in TRAINED else "both")[0]()


def fill(plan: list[Planned], device: str, advance: Callable[[str], None]) -> int:
    """Compile all of it; how many failed, which the session will tell about."""
    tasks = jobs(plan)
    if not tasks:
        return 0
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    largest = max(case.elements for case, _ in tasks)
    # Half of the memory, for up to ten tensors each.
    room = machine.free_bytes(device) // 2 // (10 * 8 * largest)
    workers = max(1, min(os.cpu_count() or 1, len(tasks), room))
    if device == "cuda":  # the tests run meanwhile
        workers = max(1, workers // 2)
    failures = 0
    spawn = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)  # which the compiler writes into what it makes
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, threads) as pool:
        pending = {pool.submit(compile_one, *task, device): task for task in tasks}
        for done in as_completed(pending):
            case, name = pending[done]
            failures += done.exception() is not None
            advance(f"{name} {case.describe()}")
    return failures


def jobs(plan: list[Planned]) -> list[tuple[Case, str]]:
    """All that will be compiled, provider by provider, as the session goes through them."""
    found = [
        (item.case, name)
        for item in plan
        for name in item.providers
        if PROVIDERS[name].mode is not None and PROVIDERS[name].fits(item.case)
    ]
    order = list(PROVIDERS)
    return sorted(found, key=lambda job: order.index(job[1]))
