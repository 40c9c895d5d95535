"""Programs for a GPU that gpu_check.py has a sanitizer or a profiler look at: smoke, once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from actreg_ext import reference  # noqa: E402
from actreg_ext.functional import act_reg, act_reg_  # noqa: E402
from benchmarks import places  # noqa: E402
from benchmarks.cases import Case  # noqa: E402
from benchmarks.correctness import relative_error, tolerance  # noqa: E402
from benchmarks.providers import PROVIDERS  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# With these, backward has the input, the input, the output and bits.
KINDS = (("gelu", 0.25), ("softplus", 0.25), ("tanh", 0.0), ("relu", 0.0))
# (offset, elements): whole tiles, ends, unaligned views, and many blocks that finish together.
VIEWS = ((0, 8192), (1, 4101), (3, 5), (0, 2**20 + 3), (1, 2**20 + 3))


class Call(NamedTuple):
    name: str
    l2: float
    dtype: torch.dtype
    p: float
    offset: int
    n: int


def calls() -> Iterator[Call]:
    for name, l2 in KINDS:
        for dtype in DTYPES:
            for p in (0.0, 0.3):
                for offset, n in VIEWS:
                    yield Call(name, l2, dtype, p, offset, n)


Function = Callable[..., Any]


def results(function: Function, x: Tensor, call: Call) -> tuple[Tensor, ...]:
    """Output, penalty and gradient; of the smallest tensor a second derivative too."""
    x = x.requires_grad_()
    y, penalty = function(x, call.name, l1=0.5, l2=call.l2, p=call.p, seed=1)
    dy = torch.linspace(1, 2, len(x), dtype=torch.float64).to(x)
    again = call.n == VIEWS[2][1]
    gradients = (dy, torch.ones_like(penalty))
    (dx,) = torch.autograd.grad((y, penalty), x, gradients, create_graph=again)
    found = [y, penalty, dx]
    if again:
        found += torch.autograd.grad(dx, x, dy, materialize_grads=True)
    return tuple(t.detach().cpu() for t in found)


def in_place(x: Tensor, call: Call) -> tuple[Tensor, ...]:
    y, penalty = act_reg_(x, call.name, l1=0.5, l2=call.l2, p=call.p, seed=1)
    return y.cpu(), penalty.cpu()


def inputs(call: Call) -> Tensor:
    return torch.linspace(-4, 4, call.n, dtype=torch.float64).to(call.dtype)


@lru_cache(maxsize=len(VIEWS))
def truth(call: Call) -> tuple[Tensor, ...]:
    return results(reference.act_reg, inputs(call).double(), call)


def smoke(device: str) -> None:
    """Every kernel, from each address, of one block and of many, against float64."""
    for call in calls():
        true = truth(call._replace(offset=0))
        view = torch.empty(call.n + call.offset, dtype=call.dtype, device=device)[call.offset :]
        found = results(act_reg, view.copy_(inputs(call)), call)
        placed = in_place(view.detach(), call)
        for ours, theirs, factor in (
            (found[:3], true[:3], 1),
            (placed, true[:2], 1),
            (found[3:], true[3:], 4),
        ):
            error = relative_error(ours, theirs)
            assert error <= factor * tolerance(call.dtype), (call, error)
    print("smoke: all is right")


def once(axes: dict[str, Any], device: str) -> None:
    """Forward and backward of one case, for a profiler."""
    case = Case(**axes)
    xs, dy = places.inputs(case, device)
    ours = places.subject(case, PROVIDERS["fused"], xs, dy)
    for run in ours.runs("both"):
        run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=("smoke", "once"))
    parser.add_argument("case", nargs="?", type=json.loads, help="of once, as JSON")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.program == "smoke":
        smoke(options.device)
    else:
        once(options.case, options.device)


if __name__ == "__main__":
    main()
