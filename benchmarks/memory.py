"""What a call needs: bytes kept for backward, peak memory, and kernel launches.

docs/performance.md says what counts. The peak on a GPU is the allocator's high-water mark. On the
CPU the peak is that of the running sum of the profiler's allocation events: every tensor counts,
also inside compiled code and C++; threads and scratch memory of libraries do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Silences Kineto's lines about its start and stop. Kineto reads this at its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def saved_bytes(call: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Kept for backward after this forward."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # a freed address could be used again and hide a storage

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = call()
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    del outputs
    return sum(size for address, size in storages.items() if address not in known)


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most that is allocated at one time during the call."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    live = most = 0
    for event in _events(call, [ProfilerActivity.CPU], profile_memory=True):
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def launches(call: Callable[[], object], device: str) -> int | None:
    """Kernels, without copies and fills; None on the CPU, and where the profiler sees nothing."""
    if device != "cuda":
        return None
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for _ in range(2):  # the first profile of a process may see none
        events = [e for e in _events(call, activities) if e.device_type().name == "CUDA"]
        # An annotation covers the kernels of its time.
        names = [event.name() for event in events if not event.is_user_annotation()]
        if count := sum(not name.startswith(("Mem", "gpu_")) for name in names):
            return count
    return None


def _events(call: Callable[[], object], activities: list[Any], **options: Any) -> list[Any]:
    """In the order of their time."""
    with profile(activities=activities, acc_events=True, **options) as profiled:
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    del result
    found = profiled.profiler.kineto_results.events()
    return sorted(found, key=lambda event: event.start_ns())
