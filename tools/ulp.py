"""Find the largest errors of the CPU's kernels by trying every float: make ulp.

Writes docs/accuracy.md, which says what is measured. The package computes y and, backward from dy =
1, dx = act'(x), from x or, where that is kept instead, from y, in the instruction set that
ATEN_CPU_CAPABILITY names; tests/exact.cpp, a library, knows the truth and counts the errors. The
2^32 bit patterns are cut into intervals, which processes of one thread each take. All of them are
tried in the best instruction set (or the one that is named), and every 17th in those below it and
by PyTorch.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import multiprocessing
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import cpp_extension

import actreg_ext
from actreg_ext import _C, ops, reference
from actreg_ext.functional import act_reg
from tests import table
from tools import ulp_report

ROOT = Path(__file__).parents[1]
SOURCE, LIBRARY = ROOT / "tests" / "exact.cpp", ROOT / "build" / "ulp" / "exact.so"
CHUNK, TASK = 2**18, 2**26  # patterns: what stays in the caches, and what a process takes at a time
BENT = range(0x3A800000, 0x43000000)  # patterns of 2^-10 to 2^7, where activations bend
SPECIAL = 0x7F800000  # infinity's, and from there on those of NaN
STRIDE = 17  # odd, so that the last bits are any
POINTS = 2**20  # of float64
OTHER_DTYPES = (torch.float64, *table.HALF_TYPES)


class Error(ctypes.Structure):
    _fields_ = [("worst", ctypes.c_double), ("at", ctypes.c_double), ("nearest", ctypes.c_int64)]


class Format(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("least", "greatest", "epsilon")]


class Found(NamedTuple):
    """In values or in slopes."""

    worst: float = 0.0  # in ulps
    at: float = 0.0  # for which x
    nearest: int = 0  # how many are at most half an ulp off,
    count: int = 0  # and of how many

    def __or__(self, other: Found) -> Found:
        worse = max(self, other, key=lambda found: found.worst)
        return Found(*worse[:2], self.nearest + other.nearest, self.count + other.count)


Founds = tuple[Found, ...]  # in values, in slopes


def merged(a: Founds, b: Founds) -> Founds:
    return tuple(x | y for x, y in zip(a, b, strict=True))


class Task(NamedTuple):
    variant: dict[str, Any]
    is_eager: bool
    of_output: bool  # the slopes as they are where backward has the output and not x
    first: int
    stride: int


def build() -> None:
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    flags = "-std=c++17 -O3 -march=native -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror"
    command = [cpp_extension.get_cxx_compiler(), *flags.split(), "-shared", "-fPIC", str(SOURCE)]
    quad = ["-lquadmath"] if platform.machine().lower() in ("x86_64", "amd64") else []
    new = LIBRARY.with_suffix(f".{os.getpid()}")  # another process may be loading the old one
    subprocess.run([*command, "-o", str(new), *quad], check=True)
    new.replace(LIBRARY)


@cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.measure_float32.restype = loaded.measure_float64.restype = ctypes.c_bool
    return loaded


def parameters_of(variant: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """The name, and the parameters in the registry's order."""
    values = {**actreg_ext.activations()[variant["activation"]], **variant}
    return values.pop("activation"), tuple(values.values())


def results(
    variant: dict[str, Any], is_eager: bool, x: Tensor, *, of_output: bool = False
) -> tuple[Tensor, Tensor]:
    """Values and slopes."""
    name, parameters = parameters_of(variant)
    dy = ones(x.numel(), x.dtype)
    if is_eager:
        x = x.detach().requires_grad_()
        y = reference.ACTIVATIONS[name][0](x, *parameters)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]
    y = act_reg(x, **variant).output
    attributes = (name, parameters, 0.0, False, (0.0, 0.0), "sum", ())
    return y, ops.backward(dy, None, y if of_output else x, None, *attributes, of_output)


@cache
def ones(n: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(n, dtype=dtype)


def measure(
    variant: dict[str, Any], x: Tensor, got: tuple[Tensor, Tensor], least: float = 0.0
) -> Founds:
    """The errors of values and slopes, for x that are finite, in ulps of their dtype.

    What is less than `least` has no smaller ulps than that.
    """
    info = torch.finfo(x.dtype)
    form = Format(max(info.smallest_normal, least), 2.0 ** round(math.log2(info.max) - 1), info.eps)
    wide = x.dtype if x.dtype == torch.float64 else torch.float32  # has all numbers of a half type
    tensors = [tensor.to(wide).contiguous() for tensor in (x, *got)]
    name, parameters = parameters_of(variant)
    errors = (Error * 2)()
    known = getattr(library(), f"measure_{table.describe(wide)}")(
        name.encode(),
        (ctypes.c_double * len(parameters))(*parameters),
        ctypes.byref(form),
        ctypes.c_int64(x.numel()),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        errors,
    )
    if not known:
        raise LookupError(f"{SOURCE} has no {name}")
    return tuple(Found(e.worst, e.at, e.nearest, x.numel()) for e in errors)


def measure_slopes(variant: dict[str, Any], x: Tensor, got: tuple[Tensor, Tensor]) -> Founds:
    """The errors of slopes, of at most 1, in ulps and in ulps of 1."""
    return measure(variant, x, got)[1], measure(variant, x, got, least=1.0)[1]


def measure_chunk(task: Task, first: int) -> Founds:
    """The errors for the task's share of the patterns from `first` on."""
    variant, is_eager, of_output, _, stride = task
    measured = measure_slopes if of_output else measure
    start = first + -first % stride
    bits = torch.arange(start - first, CHUNK, stride, dtype=torch.int32)
    bits += first - 2**32 * (first >= 2**31)
    x = bits.view(torch.float32)
    got = results(variant, is_eager, x, of_output=of_output)
    if first % 2**31 + CHUNK <= SPECIAL:
        return measured(variant, x, got)
    finite, nan = x.isfinite(), x.isnan()
    # What NaN and the infinities give is the matter of tests/test_specials.py; here, that all NaN
    # give the same.
    of_nan = results(variant, False, torch.tensor([math.nan]), of_output=of_output)
    for result, one in zip(got, of_nan, strict=True):
        if not is_eager and not result[nan].isclose(one, 0, 0, equal_nan=True).all():
            raise ValueError(f"{variant}: not the same for every NaN")
    return measured(variant, x[finite], (got[0][finite], got[1][finite]))


def sweep(task: Task) -> tuple[Founds, Founds]:
    """The errors in an interval of patterns; and of these, where activations bend."""
    whole = bent = (Found(), Found())
    for first in range(task.first, task.first + TASK, CHUNK):
        founds = measure_chunk(task, first)
        whole = merged(whole, founds)
        bent = merged(bent, founds) if first % 2**31 in BENT else bent
    return whole, bent


def inputs(dtype: torch.dtype) -> Tensor:
    """Of the half types all finite numbers; of float64 as table.random_inputs, and any exponent."""
    if dtype != torch.float64:
        every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        return every[every.isfinite()]
    generator = torch.Generator().manual_seed(0)
    exponents = torch.empty(POINTS, dtype=dtype).uniform_(-10, 9.5, generator=generator)
    exponents[::4].uniform_(-1070, 1023, generator=generator)
    signs = torch.randint(0, 2, (POINTS,), generator=generator) * 2 - 1
    return exponents.exp2() * signs


def measure_other(variant: dict[str, Any], is_eager: bool, dtype: torch.dtype) -> Founds:
    x = inputs(dtype)
    return measure(variant, x, results(variant, is_eager, x))


def single_threaded() -> None:
    torch.set_num_threads(1)


def output_tells(variant: dict[str, Any]) -> bool:
    """Whether backward has the output and not x, without penalties and dropout."""
    return _C.kept(torch.float32, *parameters_of(variant), 0.0, False, 0.0, 0.0) == "output"


def run(
    text: str, capability: str, is_eager: bool, stride: int, *, of_output: bool = False
) -> list[ulp_report.Row]:
    """The activations with that text in their names, computed in one instruction set."""
    os.environ["ATEN_CPU_CAPABILITY"] = capability.lower()
    context = multiprocessing.get_context("spawn")  # processes that read the environment again
    rows = []
    with ProcessPoolExecutor(os.cpu_count(), context, single_threaded) as workers:
        for variant in (v for v in table.PLAIN if text in v["activation"]):
            if of_output and not output_tells(variant):
                continue
            start, name = time.perf_counter(), variant["activation"]
            tasks = [
                Task(variant, is_eager, of_output, first, stride) for first in range(0, 2**32, TASK)
            ]
            parts = zip(*workers.map(sweep, tasks), strict=True)
            whole, bent = (reduce(merged, part) for part in parts)
            others = [
                workers.submit(measure_other, variant, is_eager, dtype)
                for dtype in (() if of_output else OTHER_DTYPES)
            ]
            rows.append(ulp_report.Row(name, whole, bent, [other.result() for other in others]))
            errors = " and ".join(f"{found.worst:.4g} at {found.at:.9g}" for found in whole)
            what = f"PyTorch {capability}" if is_eager else capability
            what += " slopes of the output," if of_output else ""
            print(f"{what} {name}: {errors}, {time.perf_counter() - start:.1f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="only the activations named so")
    parser.add_argument("--stride", metavar="N", type=int, default=1, help="only every N-th float")
    only, stride = vars(parser.parse_args()).values()
    build()
    sets = _C.build_info()["instruction_sets"]
    best, *others = sets[sets.index(_C.cpu_capability()) :]
    ours = {best: run(only, best, False, stride)}
    ours |= {other: run(only, other, False, STRIDE * stride) for other in others}
    of_output = (
        run(only, best, False, stride, of_output=True),
        run(only, best, True, STRIDE * stride, of_output=True),
    )
    text = ulp_report.page(ours, run(only, best, True, STRIDE * stride), of_output)
    if only:
        text = ulp_report.updated(ulp_report.PATH.read_text(), text)
    if stride == 1:
        ulp_report.PATH.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
