"""A chosen set of the same cases under pytest-benchmark: pytest benchmarks --benchmark-only.

For its histograms, its comparisons and its storage. What the project quotes is measured by python
-m benchmarks, whose rivals take turns.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from benchmarks import correctness
from benchmarks.cases import Case
from benchmarks.places import graphs_that_stay, inputs, subject
from benchmarks.providers import PROVIDERS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGE = 2**26 if DEVICE == "cuda" else 2**22
CASES = [
    Case("call", "gelu", "float32", 0.1, "both", 2**4),
    Case("call", "relu", "float32", 0.0, "both", LARGE),
    Case("call", "gelu", "float32", 0.1, "both", LARGE),
    Case("call", "gelu", "bfloat16", 0.1, "both", LARGE),
    Case("mlp", "gelu", "float32", 0.1, "both", 2**18),
]
CHOSEN = [
    pytest.param(case, direction, name, id=f"{case.describe()} {direction} {name}")
    for case, direction, name in itertools.product(CASES, ("forward", "backward"), PROVIDERS)
    if PROVIDERS[name].fits(case) and PROVIDERS[name].why_absent(DEVICE) is None
]


@pytest.mark.parametrize(("case", "direction", "name"), CHOSEN)
def test_speed(benchmark: Any, case: Case, direction: str, name: str) -> None:
    benchmark.group = f"{case.describe()} {direction}"
    xs, dy = inputs(case, DEVICE)
    with graphs_that_stay():
        timed = subject(case, PROVIDERS[name], xs, dy)
        assert correctness.Judge(case).error(PROVIDERS[name], timed).is_right(case)
        turns = itertools.cycle(timed.runs(direction))

        def finish() -> None:
            next(turns)()
            torch.cuda.synchronize()

        benchmark(finish if DEVICE == "cuda" else next(turns))  # on the CPU there is one input
