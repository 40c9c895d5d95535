"""The instructions of the CPU's kernels, counted by callgrind: python -m benchmarks.instructions

Writes benchmarks/instructions.md, which `python -m benchmarks.report` takes into
docs/performance.md. Needs valgrind, which has no AVX-512: the kernels are those for AVX2. Takes two
minutes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

import torch
from torch.utils.benchmark import Timer

from actreg_ext import activations

from . import markdown
from .cases import REQUIRED
from .machine import ROOT

PATH = ROOT / "benchmarks" / "instructions.md"
ELEMENTS = 1 << 14
SETUP = f"""
import torch
from benchmarks.instructions import every_kernel
inputs = [torch.randn({ELEMENTS}).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
state = torch.tensor([1, 2])
"""
TYPES = {"float": "float32", "BFloat16": "bfloat16"}  # in C++ and in torch
LOOP = re.compile(
    r"cpu::\(anonymous namespace\)::(?P<direction>\w+)_loop<(?P<drops>true|false), (?:true, )?"
    r"(?:actreg::)?(?P<dtype>\w+), (?P<of_output>actreg::OfOutput<)?actreg::(?P<activation>\w+)>"
)
OF_OUTPUT = "backward from the output"
# These have kernels of their own for it.
TELLING = ("leaky_relu", "sigmoid", "logsigmoid", "tanh", "softplus", "softshrink")
DRAW = re.compile(r"cpu::\(anonymous namespace\)::draw\(")
TEXT = """\
## What the kernels execute

Instructions for each element, by the kernels for AVX2 (8 float32 in a register), with L1 and L2,
counted by callgrind (`python -m benchmarks.instructions`, torch {torch}).
{draw:.2f} of those with dropout draw the mask. Loads and stores, all that a copy or a sum has to
do, are 0.25 of them in forward and 0.38 in backward, in bfloat16 half of that. The rest is
arithmetic: it is what is left to the floor where memory or cache are faster than it.

{table}
"""


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
                torch.ops.actreg.backward.default(x, one, x, None, *attributes, True)


def counts() -> tuple[dict[tuple[str, ...], float], float]:
    """Instructions for each element: of each loop with its draw, and of the draw."""
    timer = Timer("every_kernel(inputs, state)", setup=SETUP)
    stats = timer.collect_callgrind(1, repeats=None, collect_baseline=False, retain_out_file=False)
    loops: Counter[tuple[str, ...]] = Counter()
    drawn = 0
    for instructions, function in stats.stats(inclusive=False):
        if found := LOOP.search(function):
            dtype, direction, drops = found.group("dtype", "direction", "drops")
            direction = OF_OUTPUT if found["of_output"] else direction
            loops[(found["activation"].lower(), dtype, direction, drops)] += instructions
        elif DRAW.search(function):
            drawn += instructions
    draw = drawn / ELEMENTS / sum(key[3] == "true" for key in loops)
    each = {key: n / ELEMENTS + draw * (key[3] == "true") for key, n in loops.items()}
    return each, draw


def main() -> int:
    if sys.argv[1:]:
        print(__doc__)
        return 0
    found, draw = counts()
    columns = [
        (dtype, direction, drops)
        for dtype in TYPES
        for direction in ("forward", "backward")
        for drops in ("false", "true")
    ]
    columns.insert(4, ("float", OF_OUTPUT, "false"))
    head = [
        f"{TYPES[dtype]}, {direction}{', p = 0.1' if drops == 'true' else ''}"
        for dtype, direction, drops in columns
    ]
    lines = []
    for name in activations():
        struct = name.replace("_", "")
        cells = [found.get((struct, *column)) for column in columns]
        lines.append([f"`{name}`", *("" if cell is None else f"{cell:.1f}" for cell in cells)])
    table = markdown.table(["", *head], lines)
    PATH.write_text(TEXT.format(torch=torch.__version__, draw=draw, table=table))
    print(PATH.read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
