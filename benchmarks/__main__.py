"""Ratios of the operator's time to its rivals': python -m benchmarks --help.

Forward is held against `x.clone()` and backward against `torch.add(x, dy)`: what the memory alone
costs, each allocating its output. The rivals take turns within each round, and every figure is the
median over the rounds of a ratio of neighbours, so that a machine that changes its speed does not
decide.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from actreg_ext import activations, reference
from actreg_ext.functional import act_reg

L1, L2 = 1e-3, 1e-3
REQUIRED = {"threshold": {"threshold": 0.1, "value": 0.0}}  # parameters without defaults

Timed = Callable[[], object]


def as_user_writes(x: torch.Tensor, name: str, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same computation in plain PyTorch: activation, penalties, dropout."""
    a = reference.ACTIVATIONS[name][0](x, **REQUIRED.get(name, {}))
    penalty = L1 * a.abs().mean() + L2 * a.square().mean()
    return torch.nn.functional.dropout(a, p), penalty


def forward(function: Callable[..., tuple[torch.Tensor, torch.Tensor]], *args: object) -> Timed:
    """A call of the forward, with the graph that training needs."""
    return lambda: function(*args)


def backward(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor, *args: object
) -> Timed:
    """A call of the backward alone."""
    output, penalty = function(x, *args)
    gradients = (torch.ones_like(output), torch.ones_like(penalty))

    def run() -> object:
        return torch.autograd.grad((output, penalty), x, gradients, retain_graph=True)

    return run


def seconds(timed: Timed, calls: int) -> float:
    """The mean time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        timed()
    return (time.perf_counter() - start) / calls


def ratios(rivals: dict[str, Timed], rounds: int, budget: float = 0.004) -> dict[str, float]:
    """The median ratio of the operator's time ("fused") to each rival's."""
    calls = {name: max(1, int(budget / max(seconds(run, 2), 1e-9))) for name, run in rivals.items()}
    shares: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        times = {name: seconds(run, calls[name]) for name, run in rivals.items()}
        for name, taken in times.items():
            shares[name].append(times["fused"] / taken)
    return {name: statistics.median(share) for name, share in shares.items()}


def compare(x: torch.Tensor, name: str, p: float, compiled: bool, rounds: int) -> list[float]:
    """The ratios of one case, forward then backward: to memory, to eager, to compiled."""
    dy = torch.ones_like(x)
    extra = REQUIRED.get(name, {})

    def fused(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return act_reg(x, name, l1=L1, l2=L2, p=p, **extra)

    def eager(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return as_user_writes(x, name, p)

    functions = {"fused": fused, "eager": eager}
    if compiled:
        torch._dynamo.reset()
        functions["compiled"] = torch.compile(eager, dynamic=False)
    row = []
    for direction, floor in (
        (forward, x.detach().clone),
        (backward, lambda: torch.add(x.detach(), dy)),
    ):
        rivals = {"fused": direction(fused, x), "memory": floor}
        rivals |= {key: direction(f, x) for key, f in functions.items()}
        found = ratios(rivals, rounds)
        row += [found[key] for key in ("memory", "eager", *(["compiled"] if compiled else []))]
    return row


def main() -> None:
    """Print one table of ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**24], help="elements")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--activations", nargs="+", default=["relu", "gelu", "silu"])
    parser.add_argument("--p", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = list(activations()) if options.activations == ["all"] else options.activations

    rivals = ["memory", "eager"] + ["compiled"] * (not options.no_compile)
    columns = [f"{way} / {rival}" for way in ("forward", "backward") for rival in rivals]
    table = Table(title="time of the fused operator as a multiple of the rival's (median)")
    for column in ("elements", "dtype", "activation", "p", *columns):
        table.add_column(column, justify="right")
    cases = [
        (size, dtype, name, p)
        for size in options.sizes
        for dtype in options.dtypes
        for name in names
        for p in options.p
    ]
    for size, dtype, name, p in track(cases, description="timing"):
        x = torch.randn(size).to(getattr(torch, dtype)).requires_grad_()
        row = compare(x, name, p, not options.no_compile, options.rounds)
        table.add_row(f"2^{size.bit_length() - 1}", dtype, name, str(p), *(f"{r:.2f}" for r in row))
    console = Console(width=160)
    console.print(table)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )


if __name__ == "__main__":
    main()
