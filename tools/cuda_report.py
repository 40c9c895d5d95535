"""Compile the CUDA kernels by nvcc alone and read their machine code: make cuda.

Prints for each kernel its registers, its 128-bit loads and stores, the instructions that it
executes for each element and for each block, and the share of the memory's time on a GPU of that
kind that the busiest part of a multiprocessor takes. Fails if a kernel spills registers in its main
loop, or if a load or a store of its main loop is not 128 bits wide. --arch all takes sm_80, sm_90,
sm_100 and sm_120; --markdown writes docs/cuda_kernels.md.

Needs nvcc, and cuobjdump with nvdisasm: from the toolkit, or pip install nvidia-cuda-cuobjdump
nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import sass

ROOT = Path(__file__).resolve().parents[1]
NVCC = os.environ.get("NVCC", "nvcc")
DTYPES = {"float": ("float32", 4), "double": ("float64", 8), "Half": ("float16", 2)}
DTYPES["BFloat16"] = ("bfloat16", 2)
ARCHITECTURES = ["sm_80", "sm_90", "sm_100", "sm_120"]


class Gpu(NamedTuple):
    architecture: str
    multiprocessors: int
    gigahertz: float  # boost clock
    terabytes: float  # each second

    def share(self, slots: float, traffic: float) -> float:
        """Return what share of the time that memory moves so many bytes in the slots take."""
        slots_a_second = self.multiprocessors * 4 * 32 * self.gigahertz * 1e9
        return slots / slots_a_second / (traffic / (self.terabytes * 1e12))


# By NVIDIA's datasheets; the clock of the B200, which they leave out, as others report it.
GPUS = {
    "A100": Gpu("sm_80", 108, 1.41, 2.04),  # SXM, 80 GB
    "H100": Gpu("sm_90", 132, 1.98, 3.35),  # SXM
    "H200": Gpu("sm_90", 132, 1.98, 4.8),
    "B200": Gpu("sm_100", 148, 1.965, 8.0),
}
SHOWN = {"sm_80": "A100", "sm_90": "H200", "sm_100": "B200"}  # whose share is printed


# Elements that cross the memory, and those that are loaded; beside them, bytes of bits.
TRAFFIC = {
    "forward": (2, 1, 0.0),
    "forward_plain": (2, 1, 0.0),
    "backward": (3, 2, 0.0),
    "backward_output": (3, 2, 0.0),
    "backward_bits": (2, 1, 1 / 8),
}


class Kernel(NamedTuple):
    architecture: str
    direction: str  # forward_plain: the way through forward if there is no penalty
    dtype: str
    activation: str  # none for backward_bits, which is the same for all
    drops: bool
    size: int  # of an element
    registers: int
    spills: int  # instructions that spill, in the kernel
    spills_in_loop: int  # and in the loop over a tile's steps
    loads: int
    stores: int
    instructions: float  # for each element
    slots: float
    pipe: str
    start: int  # instructions of a block before its first wide load
    end: int  # and after its last wide store

    @property
    def traffic(self) -> float:
        """Bytes for each element."""
        elements, _, bits = TRAFFIC[self.direction]
        return elements * self.size + bits

    @property
    def blocks(self) -> int:
        """How many blocks of 256 threads a multiprocessor's registers hold."""
        return 65536 // (256 * (-(-self.registers // 8) * 8))

    def share(self, gpu: Gpu) -> float:
        """Of the memory's time, that of the busiest pipe."""
        return gpu.share(self.slots, self.traffic)

    def faults(self) -> list[str]:
        found = [f"{self.spills_in_loop} spills in the loop"] if self.spills_in_loop else []
        loads, stores = wide_accesses(self.direction, self.size)
        if (self.loads, self.stores) != (loads, stores):
            found.append(f"{self.loads} and {self.stores} of {loads} loads and {stores} stores")
        return found


def vectors_at_once(direction: str, size: int) -> int:
    """Return how many vectors of each input a step takes: Note [Whole tiles and others]."""
    return 2 if size == 2 and direction.startswith("backward") else 4


def wide_accesses(direction: str, size: int) -> tuple[int, int]:
    """Return how many 128-bit loads and stores a step takes."""
    vectors = vectors_at_once(direction, size)
    return vectors * TRAFFIC[direction][1], vectors


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def disassembler() -> str:
    """Return cuobjdump, with nvdisasm beside it, from the toolkit or from Python's packages."""
    beside = Path(os.path.realpath(shutil.which(NVCC) or NVCC)).parent
    site = Path(sysconfig.get_path("purelib"))
    folders = [beside, *site.glob("nvidia/*/bin"), site / "triton/backends/nvidia/bin"]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    if found := shutil.which("cuobjdump", path=path):
        return found
    sys.exit("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def examine(source: Path, architecture: str, folder: str) -> list[Kernel]:
    cubin = f"{folder}/{source.stem}_{architecture}.cubin"
    flags = ["-std=c++17", "-O3", f"-arch={architecture}", f"-I{ROOT}/csrc"]
    run(NVCC, "-cubin", *flags, "-Werror=all-warnings", str(source), "-o", cubin)
    tool = disassembler()
    usage = run(tool, "--dump-resource-usage", cubin)
    registers = dict(re.findall(r"Function (\S+):\s+REG:(\d+)", usage))
    bodies = dict(sass.functions(run(tool, "-sass", cubin)))
    plain = run("c++filt", *bodies).splitlines()
    kernels = []
    for (name, body), text in zip(bodies.items(), plain, strict=True):
        what = re.search(
            r"(\w+)_kernel<(true|false), (?:\w+::)?(\w+)(?:, (\w+::OfOutput<)?\w+::(\w+))?>", text
        )
        if what is None:
            continue  # curvature, which has no tiles
        dtype, size = DTYPES[what[3]]
        direction = what[1] + "_output" * bool(what[4])
        activation = re.sub(r"(?<!^)([A-Z])", r"_\1", what[5] or "").lower()
        activation = activation.replace("log_s", "logs")
        elements = vectors_at_once(direction, size) * 16 // size
        loops = sass.main_loops(body, wide_accesses(direction, size)[0])
        directions = ["forward_plain", "forward"] if direction == "forward" else [direction]
        for kind, loop in zip(directions, [*loops, [], []], strict=False):
            slots, pipe = sass.busiest(loop, architecture) if loop else (0, "")
            end = sass.way(body, "STG", "EXIT", loop)
            if kind == "forward":  # through the blocks' protocol
                end = sass.way(body, "STG", "ATOM", loop) + sass.way(body, "ATOM", "EXIT", loop)
            kernels.append(
                Kernel(
                    architecture,
                    kind,
                    dtype,
                    activation,
                    what[2] == "true",
                    size,
                    int(registers[name]),
                    sass.count(body, r"STL|LDL"),
                    sass.count(loop, r"STL|LDL"),
                    sass.count(loop, r"LDG\S*\.128"),
                    sass.count(loop, r"STG\S*\.128"),
                    len(loop) / elements,
                    slots / elements,
                    pipe,
                    sass.way(body, "", r"LDG\S*\.128", loop),
                    end,
                )
            )
    return kernels


def table(kernels: list[Kernel], direction: str, gpu: Gpu) -> list[str]:
    """Return a direction's instructions and shares, by activation, dtype and dropout."""
    kernels = [k for k in kernels if (k.architecture, k.direction) == (gpu.architecture, direction)]
    by = {(k.dtype, k.activation, k.drops): k for k in kernels}
    columns = [(dtype, drops) for dtype, _ in DTYPES.values() for drops in (False, True)]
    lines = [f"| activation | {' | '.join(d + ', p > 0' * drops for d, drops in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for activation in dict.fromkeys(k.activation for k in kernels):
        found = [by.get((dtype, activation, drops)) for dtype, drops in columns]
        cells = [f"{k.instructions:.0f} ({100 * k.share(gpu):.0f} %)" if k else "" for k in found]
        lines.append(f"| {activation or 'any'} | {' | '.join(cells)} |")
    return lines


def span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def blocks_table(kernels: list[Kernel]) -> list[str]:
    """Return what a block is and costs, over the activations."""
    lines = ["| | dtype | registers | blocks | instructions before the loop | after the loop |"]
    lines.append("|---|---|---|---|---|---|")
    for direction in ("forward", "forward_plain", "backward"):
        for drops in (False, True):
            for dtype, _ in DTYPES.values():
                kind = (direction, drops, dtype)
                found = [k for k in kernels if (k.direction, k.drops, k.dtype) == kind]
                name = TITLES[direction].lower() + ", p > 0" * drops
                columns = ("registers", "blocks", "start", "end")
                cells = [span([getattr(k, column) for k in found]) for column in columns]
                lines.append(f"| {name} | {dtype} | {' | '.join(cells)} |")
    return lines


def expectations(kernels: list[Kernel]) -> list[str]:
    """Return how long 2^26 elements should take on each GPU."""
    by = {(k.architecture, k.direction, k.dtype, k.activation, k.drops): k for k in kernels}
    columns = [(a, drops) for a in ("relu", "gelu") for drops in (False, True)]
    lines = [f"| GPU | | dtype | memory | {' | '.join(a + ', p > 0' * d for a, d in columns)} |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for name, gpu in GPUS.items():
        for direction in ("forward", "backward"):
            for dtype in ("float32", "bfloat16"):
                found = [by[(gpu.architecture, direction, dtype, *c)] for c in columns]
                memory = 2**26 * found[0].traffic / gpu.terabytes / 1e6
                times = [max(1, k.share(gpu)) * memory for k in found]
                cells = [
                    f"{time:.0f} us ({100 * k.share(gpu):.0f} %)"
                    for time, k in zip(times, found, strict=True)
                ]
                cells = [name, direction, dtype, f"{memory:.0f} us", *cells]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown(kernels: list[Kernel], release: str) -> str:
    """Return docs/cuda_kernels.md."""
    gpus = [
        f"| {name} | {gpu.multiprocessors} | {gpu.gigahertz} GHz | {gpu.terabytes} TB/s |"
        for name, gpu in GPUS.items()
    ]
    lines = [HEAD.format(release=release, gpus="\n".join(gpus))]
    lines += ["## What to expect", "", EXPECTATION]
    lines += [*expectations(kernels), "", "## What a block costs", "", BLOCKS]
    for architecture in ("sm_90", "sm_100"):
        found = [k for k in kernels if k.architecture == architecture]
        lines += [f"### {architecture}", "", *blocks_table(found), ""]
    lines += ["## Compatibility", "", COMPATIBILITY]
    for architecture in ("sm_90", "sm_100"):
        name = SHOWN[architecture]
        for direction, title in TITLES.items():
            lines += [f"## {title}: {architecture} ({name})", ""]
            lines += [*table(kernels, direction, GPUS[name]), ""]
    return "\n".join(lines)


TITLES = {
    "forward": "Forward",
    "forward_plain": "Forward without a penalty",
    "backward": "Backward",
    "backward_output": "Backward from the output",
    "backward_bits": "Backward from bits (dropout: where the mask is drawn again)",
}
HEAD = """\
# The CUDA kernels in instructions

This page says what the machine code of the kernels tells about their speed. Nothing on this page
was timed. `make cuda ARGS="--arch all --markdown"` writes the page, here with {release}.

The tables at the end count the instructions that a thread executes for each element in the main
loop, for sm_90 and sm_100. They follow the cheapest way: whole, aligned tiles, the penalty on the
activation (on a dropped output it takes one or two more), backward without L2 (which takes up to
two more), forward without leaving bits. In brackets: what the busiest part of a multiprocessor
needs for them, as a share of the time in which the memory of an H200 (sm_90) or a B200 (sm_100)
moves the element's bytes. Below 100 % memory is the limit. For an H100 the shares are 0.7 times
those of the H200.

| GPU | multiprocessors | clock | memory |
|---|---|---|---|
{gpus}

The numbers are those of the datasheets. The datasheets do not give the clock of the B200: 1.965 GHz
is what others report, and was not checked here. The lanes of sm_100 are taken to be those of sm_90.
"""
EXPECTATION = """\
The expected time for 2^26 elements: the larger of the memory's time and the time of the busiest
part of a multiprocessor, whose share of the memory's time is in brackets. The column "memory" is
the time for the bytes at the speed of the datasheet; a copy reaches about 90 % of that speed. So a
kernel whose share is below 90 % should take as long as a copy of the same bytes. A measurement of
more than 1.15 times a copy's time contradicts this page.
"""
BLOCKS = """\
Registers; the blocks of 256 threads that a multiprocessor holds at a time by its registers; and the
instructions that a block executes once, before its first wide load and after its last wide store.
The ranges are over the activations. The first step of a block also reads the seed, the offset and
the penalty's gradient, while its wide loads are under way: those instructions are not counted. A
launch has as many blocks as are resident, so a block of a large tensor pays this once for many
tiles. In forward, "after" has the sum over the block and one atomic operation, which also orders
the blocks' sums: no fence stands beside it. Without a penalty there is neither.
"""
COMPATIBILITY = """\
Checked without a GPU:
- nvcc 13.0 compiles everything for sm_80, sm_90, sm_100 and sm_120 without a warning.
- ptxas of CUDA 12.6 assembles the kernels of relu and gelu in float16 for sm_80, sm_86, sm_89 and
  sm_90, and ptxas of CUDA 12.8 for sm_86, sm_100 and sm_120. nvcc 13.0 wrote their PTX, whose
  version number was lowered. One of the 70 results spills, four bytes.

Not tried:
- nvcc of CUDA 12.6 and 12.8 as a whole. Expected to work: the sources use nothing newer than 12.0.
  nvcc 12.6 does not know Blackwell: the driver then makes the code from the PTX of 9.0, at the
  first use of each dtype.
- GPUs of 8.6, 8.9, 10.3 and 12.1. They run the code for sm_80, sm_100 and sm_120. float64 is slow
  on 8.6, 8.9 and 12.x: such a multiprocessor has two lanes for it.
- Any GPU at all: the tests execute the kernels' source on an emulated device.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["sm_90"], help="sm_90 ..., or all")
    parser.add_argument("--markdown", action="store_true", help="write docs/cuda_kernels.md")
    arguments = parser.parse_args()
    architectures = ARCHITECTURES if arguments.arch == ["all"] else arguments.arch
    if arguments.markdown and not set(architectures) >= set(SHOWN):
        parser.error(f"--markdown needs --arch all, or {' '.join(SHOWN)}")
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(source, architecture) for architecture in architectures for source in sources]
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(os.cpu_count()) as workers,
    ):
        parts = workers.map(lambda job: examine(*job, folder), jobs)
        kernels = [kernel for part in parts for kernel in part]
    print(f"{'kernel':44} registers spills loads stores instructions start end  % of memory's time")
    for k in kernels:
        faults = k.faults()
        name = f"{k.direction} {k.dtype} {k.activation}{', dropout' * k.drops}"
        gpu = SHOWN.get(k.architecture)
        share = f"{100 * k.share(GPUS[gpu]):4.0f} of {gpu} ({k.pipe})" if gpu else k.pipe
        print(
            f"{name:44} {k.registers:9} {k.spills:6} {k.loads:5} {k.stores:6} "
            f"{k.instructions:12.1f} {k.start:5} {k.end:3}  {share} "
            f"{'FAILED: ' * bool(faults)}{', '.join(faults)}"
        )
    bad = sum(bool(k.faults()) for k in kernels)
    for architecture in architectures:
        found = [k for k in kernels if k.architecture == architecture]
        one_each = [k for k in found if k.direction != "forward_plain"]
        print(
            f"{len(one_each)} kernels for {architecture}, "
            f"{sum(bool(k.spills) for k in one_each)} spill outside their loop, "
            f"{sum(bool(k.faults()) for k in found)} failed"
        )
    if arguments.markdown:
        release = re.findall(r"release ([\d.]+)", run(NVCC, "--version"))[0]
        (ROOT / "docs" / "cuda_kernels.md").write_text(markdown(kernels, f"nvcc {release}"))
    return 1 if bad or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
