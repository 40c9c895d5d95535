"""Counts instructions with callgrind: python -m benchmarks.callgrind

Writes benchmarks/overhead.md, where the instructions of a small call go, and
benchmarks/instructions.md, those of each kernel. `python -m benchmarks.report` puts both into
docs/performance.md. Needs valgrind, which has no AVX-512: the kernels are those for AVX2. Takes
seven minutes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.benchmark import Timer

from actreg_ext import activations

from .cases import REQUIRED
from .machine import ROOT
from .markdown import table

CALLS = 500  # whose instructions are counted and divided by their number
SMALL = "import torch; from actreg_ext.functional import act_reg; x = torch.randn(16)"
GRADIENT = f"{SMALL}; x.requires_grad_()"
STATEMENTS = {
    "`x.relu()`": ("x.relu()", SMALL),
    "`act_reg(x, l1=1e-4)`": ("act_reg(x, l1=1e-4)", SMALL),
    "`act_reg(x, l1=1e-4, p=0.1)`": ("act_reg(x, l1=1e-4, p=0.1)", SMALL),
    "`x.relu()`, x needs a gradient": ("x.relu()", GRADIENT),
    "`act_reg(x, l1=1e-4, p=0.1)`, x needs one": ("act_reg(x, l1=1e-4, p=0.1)", GRADIENT),
}
# A function, with its file or object, belongs to the first part that it matches.
PARTS = {
    "the kernel: mask, activation, sums": r"actreg::cpu::|philox",
    "pybind11's conversions": r"pybind11|argument_loader",
    "actreg_ext's C++: checks, results, the node": r"actreg",
    "malloc and free": r"malloc|free|memalign|operator (new|delete)|alloc_cpu",
    "locks and thread-local variables": r"pthread|tls_get_addr|_gil",
    "PyTorch: tensors, dispatcher, autograd": r"torch/lib|c10::|at::",
    "Python's interpreter": r"[Pp]ython",
    "other": "",
}
ELEMENTS = 1 << 14
KERNELS = f"""
import torch
from benchmarks.callgrind import every_kernel
inputs = [torch.randn({ELEMENTS}).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
state = torch.tensor([1, 2])
"""
LOOP = re.compile(
    r"cpu::\(anonymous namespace\)::(?P<direction>\w+)_loop<(?P<drops>true|false), (?:true, )?"
    r"(?:actreg::)?(?P<dtype>\w+), (?P<of_output>actreg::OfOutput<)?actreg::(?P<activation>\w+)>"
)
DRAW = re.compile(r"cpu::\(anonymous namespace\)::draw\(")
OF_OUTPUT = "backward from the output"
# The activations that have kernels for it.
TELLING = ("leaky_relu", "sigmoid", "logsigmoid", "tanh", "softplus", "softshrink")


def counted(statement: str, setup: str, calls: int, **options: Any) -> Iterator[tuple[int, str]]:
    """The instructions of each function, and its name."""
    timer = Timer(statement, setup=setup)
    options = {"repeats": None, "retain_out_file": False, **options}
    yield from timer.collect_callgrind(calls, **options).stats(inclusive=False)


def overhead() -> str:
    by_call = {}
    for name, (statement, setup) in STATEMENTS.items():
        found: Counter[str] = Counter()
        for n, function in counted(statement, setup, CALLS, collect_baseline=True):
            found[next(part for part, match in PARTS.items() if re.search(match, function))] += n
        by_call[name] = {part: round(n / CALLS) for part, n in found.items()}
    lines = [[part, *(f"{found.get(part, 0)}" for found in by_call.values())] for part in PARTS]
    lines.append(["all", *(f"{sum(found.values())}" for found in by_call.values())])
    return table(["", *by_call], lines)


def every_kernel(inputs: list[torch.Tensor], state: torch.Tensor) -> None:
    """Each loop once, for each input."""
    rest: tuple[Any, ...] = (False, [1.0, 1.0], "sum", [])
    for name, defaults in activations().items():
        given = list({**defaults, **REQUIRED.get(name, {})}.values())
        for x in inputs:
            one = torch.ones((), dtype=torch.float32)
            for p in (0.0, 0.1):
                options = (state if p else None, name, given, p, *rest)
                torch.ops.actreg.forward.default(x, *options)
                torch.ops.actreg.backward.default(x, one, x, *options)
            if name in TELLING and x.dtype == torch.float32:
                attributes = (name, given, 0.0, *rest)
                torch.ops.actreg.backward.default(x, one, x, None, *attributes, x_is_output=True)


def kernels() -> str:
    loops: Counter[tuple[str, ...]] = Counter()
    drawn = 0
    for n, function in counted("every_kernel(inputs, state)", KERNELS, 1, collect_baseline=False):
        if found := LOOP.search(function):
            dtype, direction, drops = found.group("dtype", "direction", "drops")
            direction = OF_OUTPUT if found["of_output"] else direction
            loops[(found["activation"].lower(), dtype, direction, drops)] += n
        elif DRAW.search(function):
            drawn += n
    draw = drawn / ELEMENTS / sum(key[3] == "true" for key in loops)
    columns = {
        f"{name}, {direction}{', p = 0.1' if drops == 'true' else ''}": (dtype, direction, drops)
        for dtype, name in (("float", "float32"), ("BFloat16", "bfloat16"))
        for direction in ("forward", "backward", OF_OUTPUT)
        for drops in ("false", "true")
    }
    lines = []
    for name in activations():
        cells = [f"`{name}`"]
        for column in columns.values():
            each = loops[(name.replace("_", ""), *column)] / ELEMENTS
            cells.append(f"{each + draw * (column[2] == 'true'):.1f}" if each else "")
        lines.append(cells)
    return f"{table(['', *columns], lines)}\n\nTo draw the mask takes {draw:.2f} of these."


def main() -> None:
    for name, found in (("overhead", overhead()), ("instructions", kernels())):
        path = ROOT / "benchmarks" / f"{name}.md"
        path.write_text(f"{found}\n\nCounted with torch {torch.__version__}.\n")
        print(path.read_text())


if __name__ == "__main__":
    main()
