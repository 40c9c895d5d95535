"""Find the largest errors of the CPU's kernels by trying every float: make ulp.

Writes docs/accuracy.md from accuracy.md.j2. The page explains what is measured.
The package computes y and, for dy = 1, dx = act'(x), in the instruction set that
ATEN_CPU_CAPABILITY names. tests/exact.cpp, a library, computes the truth and counts the errors.
Processes of one thread each take intervals of the 2^32 bit patterns. The best instruction set (or
the named one) gets all of them; the other instruction sets and PyTorch get every 17th.
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
from benchmarks.markdown import rendered
from tests import table

ROOT = Path(__file__).parents[1]
PAGE, TEMPLATE = ROOT / "docs" / "accuracy.md", ROOT / "tools" / "accuracy.md.j2"
SOURCE, LIBRARY = ROOT / "tests" / "exact.cpp", ROOT / "build" / "ulp" / "exact.so"
CHUNK, TASK = 2**18, 2**26  # patterns: those that fit into the caches, and those of one task
BENT = range(0x3A800000, 0x43000000)  # patterns of 2^-10 to 2^7, where activations bend
SPECIAL = 0x7F800000  # infinity's pattern; the larger ones are NaN
STRIDE = 17  # odd, so that all last bits occur
POINTS = 2**20  # of float64
OTHER_DTYPES = (torch.float64, *table.HALF_TYPES)


class Error(ctypes.Structure):
    _fields_ = [("worst", ctypes.c_double), ("at", ctypes.c_double), ("nearest", ctypes.c_int64)]


class Found(NamedTuple):
    """The errors of values or of slopes."""

    worst: float = 0.0  # in ulps
    at: float = 0.0  # the x with the worst error
    nearest: int = 0  # how many are at most half an ulp off
    count: int = 0  # how many were tried

    def __or__(self, other: Found) -> Found:
        worse = max(self, other, key=lambda found: found.worst)
        return Found(*worse[:2], self.nearest + other.nearest, self.count + other.count)


Founds = tuple[Found, ...]  # in values, in slopes


def merged(a: Founds, b: Founds) -> Founds:
    return tuple(x | y for x, y in zip(a, b, strict=True))


class Task(NamedTuple):
    variant: dict[str, Any]
    is_eager: bool
    of_output: bool  # whether backward computes the slopes from y, not from x
    first: int
    stride: int


class Row(NamedTuple):
    """What was found for an activation."""

    name: str
    whole: Founds
    bent: Founds  # where activations bend
    others: list[Founds]  # for each of OTHER_DTYPES


def build() -> None:
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    flags = "-std=c++17 -O3 -march=native -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror"
    command = [cpp_extension.get_cxx_compiler(), *flags.split(), "-shared", "-fPIC", str(SOURCE)]
    quad = ["-lquadmath"] if platform.machine().lower() in ("x86_64", "amd64") else []
    new = LIBRARY.with_suffix(f".{os.getpid()}")  # another process may load the old one meanwhile
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
    dy = torch.ones(x.numel(), dtype=x.dtype)
    if is_eager:
        x = x.detach().requires_grad_()
        y = reference.ACTIVATIONS[name][0](x, *parameters)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]
    y = act_reg(x, **variant).output
    # With l2 the backward accepts the output; without a gradient of the penalty l2 changes nothing.
    coefficients = (0.0, 1.0 if of_output else 0.0)
    attributes = (name, parameters, 0.0, False, coefficients, "sum", ())
    x = y if of_output else x
    return y, ops.backward(dy, None, x, None, *attributes, x_is_output=of_output)


def measure(
    variant: dict[str, Any], x: Tensor, got: tuple[Tensor, Tensor], least: float = 0.0
) -> Founds:
    """The errors of values and slopes in ulps of their dtype, for finite x.

    A truth smaller than `least` has the ulp of `least`.
    """
    info = torch.finfo(x.dtype)
    least = max(info.smallest_normal, least)
    form = (least, 2.0 ** round(math.log2(info.max) - 1), info.eps)  # exact.cpp's struct Format
    wide = x.dtype if x.dtype == torch.float64 else torch.float32  # it holds every half number
    tensors = [tensor.to(wide).contiguous() for tensor in (x, *got)]
    name, parameters = parameters_of(variant)
    errors = (Error * 2)()
    known = getattr(library(), f"measure_{table.describe(wide)}")(
        name.encode(),
        (ctypes.c_double * len(parameters))(*parameters),
        (ctypes.c_double * 3)(*form),
        ctypes.c_int64(x.numel()),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        errors,
    )
    if not known:
        raise LookupError(f"{SOURCE} has no {name}")
    return tuple(Found(e.worst, e.at, e.nearest, x.numel()) for e in errors)


def measure_slopes(variant: dict[str, Any], x: Tensor, got: tuple[Tensor, Tensor]) -> Founds:
    """The errors of slopes that are at most 1, in ulps and in ulps of 1."""
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
    # tests/test_specials.py checks NaN and the infinities. Here: all NaN give the same.
    of_nan = results(variant, False, torch.tensor([math.nan]), of_output=of_output)
    for result, one in zip(got, of_nan, strict=True):
        if not is_eager and not result[nan].isclose(one, 0, 0, equal_nan=True).all():
            raise ValueError(f"{variant}: not the same for every NaN")
    return measured(variant, x[finite], (got[0][finite], got[1][finite]))


def sweep(task: Task) -> tuple[Founds, Founds]:
    """The errors in an interval of patterns, and among them those where activations bend."""
    whole = bent = (Found(), Found())
    for first in range(task.first, task.first + TASK, CHUNK):
        founds = measure_chunk(task, first)
        whole = merged(whole, founds)
        bent = merged(bent, founds) if first % 2**31 in BENT else bent
    return whole, bent


def inputs(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a half type; random numbers of float64."""
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


def kept(variant: dict[str, Any], l2: float = 0.0) -> str:
    """What the call keeps for the backward, in float32 and without dropout."""
    return _C.kept(torch.float32, *parameters_of(variant), 0.0, False, 0.0, l2)


def output_tells(variant: dict[str, Any]) -> bool:
    """Whether the backward may compute the slope from y, by another formula than from x.

    An activation that keeps bits or nothing without a penalty has the same slopes from y.
    """
    return kept(variant) in ("input", "output") and kept(variant, l2=1.0) == "output"


def number(worst: float) -> str:
    """Rounded up, to two decimals or three digits."""
    if not math.isfinite(worst):
        return "inf"
    if worst < 100:
        return f"{math.ceil(worst * 100) / 100:g}"
    unit = 10 ** (math.floor(math.log10(worst)) - 2)
    return f"{math.ceil(worst / unit) * unit:.3g}"


def run(
    text: str, capability: str, is_eager: bool, stride: int, *, of_output: bool = False
) -> list[Row]:
    """Measure the activations with that text in their names, in one instruction set."""
    os.environ["ATEN_CPU_CAPABILITY"] = capability.lower()
    context = multiprocessing.get_context("spawn")  # its processes read the environment again
    rows = []
    with ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as workers:
        for variant in (v for v in table.PLAIN if text in v["activation"]):
            if of_output and not output_tells(variant):
                continue
            start, name = time.perf_counter(), variant["activation"]
            firsts = range(0, 2**32, TASK)
            tasks = [Task(variant, is_eager, of_output, first, stride) for first in firsts]
            parts = zip(*workers.map(sweep, tasks), strict=True)
            whole, bent = (reduce(merged, part) for part in parts)
            dtypes = () if of_output else OTHER_DTYPES
            others = [workers.submit(measure_other, variant, is_eager, dtype) for dtype in dtypes]
            rows.append(Row(name, whole, bent, [other.result() for other in others]))
            errors = " and ".join(f"{found.worst:.4g} at {found.at:.9g}" for found in whole)
            what = f"PyTorch {capability}" if is_eager else capability
            what += " slopes of the output," if of_output else ""
            print(f"{what} {name}: {errors}, {time.perf_counter() - start:.1f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="print activations named so")
    parser.add_argument("--stride", metavar="N", type=int, default=1, help="print every N-th float")
    only, stride = vars(parser.parse_args()).values()
    build()
    sets = _C.build_info()["instruction_sets"]
    best, *others = sets[sets.index(_C.cpu_capability()) :]
    ours = {best: run(only, best, False, stride)}
    ours |= {other: run(only, other, False, STRIDE * stride) for other in others}
    of_output = run(only, best, False, stride, of_output=True)
    text = rendered(
        TEMPLATE,
        ours=ours,
        of_output=of_output,
        always=[row.name for row in of_output if kept({"activation": row.name}) == "output"],
        eager_of_output=run(only, best, True, STRIDE * stride, of_output=True),
        eager=run(only, best, True, STRIDE * stride),
        best=best,
        example=next((row for row in ours[best] if row.name == "gelu"), ours[best][0]),
        number=number,
        required=[table.describe(variant) for variant in table.PLAIN if len(variant) > 1],
        torch=torch.__version__.split("+")[0],
    )
    if not only and stride == 1:
        PAGE.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
