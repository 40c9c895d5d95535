"""What a call holds: bytes kept for backward, the peak, and the kernels that it launches.

Kept: the storages that autograd packs in the forward, each counted once however many nodes keep
it, parameters left out; an input or output that is kept counts, though others may hold it too.

Peak: on a GPU the allocator's own high-water mark. On the CPU the running sum of the allocator's
events, as the profiler records them: every allocation of a tensor, also inside compiled code and
inside C++, to the byte, while pages, threads and libraries' scratch memory do not count. Both are
above what was allocated before the call, so inputs and parameters are not in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Kineto's lines about its start and stop; it reads this when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def saved_bytes(call: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Kept for backward after this forward."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # an address that is used again would hide a storage

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
    """The most that is allocated at one time during the call, above what was before it."""
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
        if count := sum(map(_is_kernel, _events(call, activities))):
            return count
    return None


def _is_kernel(event: Any) -> bool:
    """Of all that the profiler sees; an annotation lies over the kernels of its time."""
    is_on_device = event.device_type().name == "CUDA" and not event.is_user_annotation()
    return is_on_device and not event.name().startswith(("Mem", "gpu_"))


def _events(call: Callable[[], object], activities: list[Any], **options: Any) -> list[Any]:
    """In the order of their time."""
    with profile(activities=activities, acc_events=True, **options) as profiled:
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    del result
    found = profiled.profiler.kineto_results.events()
    return sorted(found, key=lambda event: event.start_ns())
