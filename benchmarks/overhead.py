"""Where the instructions of a small call go, counted by callgrind: python -m benchmarks.overhead

Writes benchmarks/overhead.md, which `python -m benchmarks.report` takes into docs/performance.md.
Needs valgrind, which has no AVX-512: the kernel is that for AVX2. Takes five minutes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import torch
from torch.utils.benchmark import Timer

from . import markdown
from .machine import ROOT

PATH = ROOT / "benchmarks" / "overhead.md"
RUNS = 500
SETUP = (
    "import torch; from actreg_ext.functional import act_reg; x = torch.randn(16); w = x.clone()"
)
GRADIENT = f"{SETUP}; x.requires_grad_()"
CALLS = {
    "`x.relu()`": ("x.relu()", SETUP),
    "`act_reg(x, l1=1e-4)`": ("act_reg(x, l1=1e-4)", SETUP),
    "`act_reg(x, l1=1e-4, p=0.1)`": ("act_reg(x, l1=1e-4, p=0.1)", SETUP),
    "relu, gradient to come": ("x.relu()", GRADIENT),
    "act_reg, gradient to come": ("act_reg(x, l1=1e-4, p=0.1)", GRADIENT),
}
# The first that a function, with the file or object it is in, matches.
PARTS = {
    "the kernel: mask, activation, sums": r"actreg::cpu::|philox",
    "pybind11's conversions": r"pybind11|argument_loader",
    "actreg_ext's C++: checks, results, the node": r"actreg",
    "malloc and free": r"malloc|free|memalign|operator (new|delete)|alloc_cpu",
    "locks and thread-local variables": r"pthread|tls_get_addr|_gil",
    "PyTorch: tensors, dispatcher, autograd": r"torch/lib|c10::|at::",
    "Python's interpreter": r"[Pp]ython",
}
TEXT = """\
## Where the time of a small call goes

Instructions of one call on 16 elements, counted by callgrind (`python -m benchmarks.overhead`,
torch {torch}; valgrind runs the kernel for AVX2). "Gradient to come": `x` requires one, so that a
node of the graph is made, and freed again.

{table}
"""


def counts(statement: str, setup: str) -> Counter[str]:
    """Instructions of one call, by part."""
    timer = Timer(statement, setup=setup)
    stats = timer.collect_callgrind(
        RUNS, repeats=None, collect_baseline=True, retain_out_file=False
    )
    found: Counter[str] = Counter()
    for instructions, function in stats.stats(inclusive=False):
        part = next((part for part, name in PARTS.items() if re.search(name, function)), "other")
        found[part] += instructions
    return Counter({part: round(n / RUNS) for part, n in found.items()})


def main() -> int:
    if sys.argv[1:]:
        print(__doc__)
        return 0
    by_call = {name: counts(*call) for name, call in CALLS.items()}
    lines = [
        [part, *(f"{found[part]}" for found in by_call.values())]
        for part in (*PARTS, "other")
        if any(found[part] for found in by_call.values())
    ]
    lines.append(["all", *(f"{found.total()}" for found in by_call.values())])
    table = markdown.table(["", *by_call], lines)
    PATH.write_text(TEXT.format(torch=torch.__version__, table=table))
    print(PATH.read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
