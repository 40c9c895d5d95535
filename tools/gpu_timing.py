"""Time the operator against its rivals on a GPU, case by case; tools/gpu_check.py reads the rows.

Forward is held against `x.clone()` and backward against `torch.add(x, dy)`, each allocating its
output; both against plain PyTorch, eager and compiled. Rivals take turns within each round, and a
ratio is the operator's time to the rival's in the same round. The inputs rotate among more bytes
than the caches hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

from actreg_ext import activations, reference
from actreg_ext.functional import act_reg

L1 = L2 = 1e-4
CALLS = 3  # in each round
REQUIRED = {"threshold": {"threshold": 0.1, "value": 0.0}}  # parameters without defaults
MOST_USED = ["relu", "gelu", "silu", "gelu_tanh", "tanh", "sigmoid", "leaky_relu", "elu"]
DTYPES = ["bfloat16", "float32", "float16", "float64"]
# Without graphs: the copies that these make of each input would count against the rival.
MODES = {"torch.compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
Timed = Callable[[int], object]


class Case(NamedTuple):
    activation: str
    dtype: str
    p: float


def cases(names: list[str]) -> list[Case]:
    """The most used activations first, for when the time is short."""
    names = sorted(names or activations(), key=lambda name: (MOST_USED + [name]).index(name))
    return [Case(*case) for case in itertools.product(names, DTYPES, (0.0, 0.1))]


def fused(case: Case, operator: Callable[..., Any] = act_reg) -> Function:
    options = {"l1": L1, "l2": L2, "p": case.p, **REQUIRED.get(case.activation, {})}
    return lambda x: operator(x, case.activation, **options)


def eager(case: Case) -> Function:
    """The same in plain PyTorch, as a user writes it."""
    activation, _ = reference.ACTIVATIONS[case.activation]
    parameters, p = REQUIRED.get(case.activation, {}), case.p

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        a = activation(x, **parameters)
        penalty = L1 * a.abs().mean() + L2 * a.square().mean()  # a sum of float16 overflows
        return (torch.nn.functional.dropout(a, p) if p else a), penalty

    return plain


def compiled(case: Case, rival: str) -> Function:
    torch._dynamo.reset()
    return torch.compile(eager(case), mode=MODES[rival], dynamic=False, fullgraph=True)


def elements(device: str, wanted: int) -> int:
    """As many as wanted, or fewer where the memory is short."""
    if device == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        while 250 * wanted > memory:  # 31 tensors of float64: what backwards of rivals keep
            wanted //= 2
    return wanted


def inputs(case: Case, n: int, device: str) -> tuple[list[Tensor], Tensor]:
    """Some x, of four times the bytes of the last cache together, and a dy."""
    dtype = getattr(torch, case.dtype)
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    count = max(2, math.ceil(4 * cache / (n * dtype.itemsize)))
    torch.manual_seed(0)
    xs = [torch.randn(n, device=device).to(dtype).requires_grad_() for _ in range(count)]
    return xs, torch.randn(n, device=device).to(dtype)


def gradient(function: Function, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, penalty and the gradient of both."""
    y, penalty = function(x)
    (dx,) = torch.autograd.grad((y, penalty), x, (dy, torch.ones_like(penalty)))
    return y.detach(), penalty.detach(), dx


def relative_error(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest of all, in the sense of the norms: NaN if there is one."""
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(found, truth, strict=True)]
    return max((error.item() for error in errors), key=lambda e: math.inf if math.isnan(e) else e)


def tolerance(dtype: torch.dtype) -> float:
    """For the same formula in that type. The tests say how exact the operator is.

    PyTorch's hardsigmoid and hardswish have a float32 one sixth in float64.
    """
    return max(8 * torch.finfo(dtype).eps, 1e-7)


def forwards(function: Function, xs: list[Tensor], dy: Tensor) -> Timed:
    return lambda i: function(xs[i % len(xs)])


def backwards(function: Function, xs: list[Tensor], dy: Tensor) -> Timed:
    outputs = [function(x) for x in xs]
    gradients = (dy, torch.ones_like(outputs[0][1]))
    pairs = list(zip(outputs, xs, strict=True))
    return lambda i: torch.autograd.grad(*pairs[i % len(xs)], gradients, retain_graph=True)


class Stopwatch:
    """Milliseconds of a call."""

    def __init__(self, device: str) -> None:
        self.device, self.lead = device, 1 << 21  # cycles

    def __call__(self, run: Timed, calls: int) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            for i in range(calls):
                run(i)
            return (time.perf_counter() - start) / calls * 1e3
        while True:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # The GPU is kept busy until all is launched, so that it never waits for a launch.
            torch.cuda._sleep(self.lead)
            begin.record()
            for i in range(calls):
                run(i)
            was_in_time = not begin.query()
            end.record()
            end.synchronize()
            if was_in_time or self.lead >= 1 << 24:
                return begin.elapsed_time(end) / calls
            self.lead *= 2


def measure(rivals: dict[str, Timed], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each rival in each round; every other round goes backwards."""
    watch = Stopwatch(device)
    for run in rivals.values():
        for i in range(3):
            run(i)
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds):
        for name in list(rivals)[:: -1 if turn % 2 else 1]:
            times[name].append(watch(rivals[name], CALLS))
    return times


def summary(ours: list[float], theirs: list[float], size: int) -> dict[str, float]:
    """Of paired times, for so many bytes that have to be moved."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, *_, high = statistics.quantiles(ratios, n=5, method="inclusive")
    fused_ms, rival_ms = statistics.median(ours), statistics.median(theirs)
    return {
        "ratio": statistics.median(ratios),
        "ratio_20": low,
        "ratio_80": high,
        "fused_ms": fused_ms,
        "rival_ms": rival_ms,
        "fused_gb_per_s": size / fused_ms / 1e6,
        "rival_gb_per_s": size / rival_ms / 1e6,
        "fused_percent_of_rival": 100 / statistics.median(ratios),
    }


def rows(
    case: Case, functions: dict[str, Function], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Of one case: each direction against each rival, and how right the rivals are."""
    xs, dy = inputs(case, options.elements, options.device)
    plain, errors = [x.detach() for x in xs], {}
    if case.p == 0:
        exact, wide = fused(case, reference.act_reg), plain[0].double().requires_grad_()
        truth = gradient(exact, wide, dy.double())
        for name, function in functions.items():
            errors[name] = relative_error(gradient(function, xs[0], dy), truth)
        del truth, wide
    for direction, start, floor, passes in (
        ("forward", forwards, Tensor.clone, 2),
        ("backward", backwards, dy.add, 3),
    ):
        rivals = {name: start(function, xs, dy) for name, function in functions.items()}
        rivals["floor"] = lambda i, floor=floor: floor(plain[i % len(plain)])
        times = measure(rivals, options.rounds, options.device)
        ours = times.pop("fused")
        del rivals  # and the graphs that they keep
        for rival, theirs in times.items():
            row = {**case._asdict(), "direction": direction, "rival": rival, "elements": len(dy)}
            row |= summary(ours, theirs, passes * dy.nbytes)
            row["errors"] = {k: e if math.isfinite(e) else None for k, e in errors.items()}
            row["is_right"] = all(e <= tolerance(dy.dtype) for e in errors.values())
            yield row


def modes(device: str) -> list[str]:
    return list(MODES) if device == "cuda" else ["torch.compile"]


def time_all(options: argparse.Namespace) -> int:
    """Everything but the compiled rivals; then of the time that is left each of them a share."""
    deadline = time.monotonic() + options.seconds
    torch._functorch.config.donated_buffer = False  # which retain_graph=True does not allow
    todo, are_right = cases(options.activations), True
    rivals = ["eager", *modes(options.device)]
    with options.rows.open("w", buffering=1) as file:
        print(json.dumps({"cases": todo, "rivals": ["floor", *rivals], "modes": MODES}), file=file)
        for turn, rival in enumerate(rivals):
            turns_left = len(rivals) - turn if turn else 1
            until = time.monotonic() + (deadline - time.monotonic()) / turns_left
            for case in todo:
                if time.monotonic() > until:
                    break
                functions = {"fused": fused(case)}
                functions[rival] = compiled(case, rival) if turn else eager(case)
                try:
                    for row in rows(case, functions, options):
                        if turn and row["rival"] == "floor":
                            continue  # is there already
                        are_right &= row["is_right"]
                        print(json.dumps(row), file=file)
                except Exception as error:  # of one case: the others may be well
                    are_right = False
                    print(f"{case} {rival}: {error!r}", flush=True)
    return 0 if are_right else 1


def compile_one(case: Case, rival: str, n: int, device: str) -> None:
    """Leave what the compiler makes of a case in its cache on the disk."""
    torch._functorch.config.donated_buffer = False  # as for the timing: it is part of the key
    # What the tuner measures beside other processes is not to be kept.
    torch._inductor.config.autotune_local_cache = False
    xs, dy = inputs(case, n, device)
    gradient(compiled(case, rival), xs[0], dy)


def fill(options: argparse.Namespace) -> int:
    """Compile in parallel, forward and backward of all cases, until there is nothing left."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    workers = max(1, (os.cpu_count() or 1) // 2)
    if options.device == "cuda":  # half of the memory, for up to ten tensors each
        memory = torch.cuda.get_device_properties(0).total_memory
        workers = max(1, min(workers, memory // 2 // (10 * 8 * options.elements)))
    failures = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        tasks = [
            pool.submit(compile_one, case, rival, options.elements, options.device)
            for case in cases(options.activations)
            for rival in modes(options.device)
        ]
        for done, task in enumerate(as_completed(tasks), start=1):
            failures += task.exception() is not None
            print(f"{done} of {len(tasks)} compiled, {failures} failed", flush=True)
    return 1 if failures else 0


def once(options: argparse.Namespace) -> int:
    """Forward and backward of one case, for a profiler."""
    case = Case(options.activations[0], options.dtype, options.p)
    xs, dy = inputs(case, options.elements, options.device)
    for x in xs:
        gradient(fused(case), x, dy)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("time", "fill", "once"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--elements", type=int, default=2**26)
    parser.add_argument("--activations", nargs="*", default=[], help="all of them if none is named")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rows", type=Path, default=Path("results/rows.jsonl"))
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of once")
    parser.add_argument("--p", type=float, default=0.1, help="of once")
    options = parser.parse_args()
    options.elements = elements(options.device, options.elements)
    return {"time": time_all, "fill": fill, "once": once}[options.command](options)


if __name__ == "__main__":
    raise SystemExit(main())
