"""Compile the CUDA kernels by nvcc alone and read their machine code: make cuda.

Prints for each kernel its registers, its 128-bit loads and stores and the instructions that it
executes for each element, and, for sm_90, the share of the time in which an H200 moves the bytes
that the busiest part of a multiprocessor takes. Fails if a kernel spills registers, or if a load or
a store of its main loop is not 128 bits wide. --markdown writes docs/cuda_kernels.md.

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
# csrc/cuda/tile.cuh: elements of a thread's share of a tile, by their size.
SHARE = {2: 32, 4: 32, 8: 8}
# Issue slots of all lanes for each byte that memory moves: 132 multiprocessors of 4 schedulers of
# 32 lanes at 1.98 GHz, 4.8 TB/s (NVIDIA's datasheet of the H200 SXM).
SLOTS_A_BYTE = 132 * 4 * 32 * 1.98e9 / 4.8e12


# Elements that cross the memory, and those that are loaded; beside them, bytes of bits.
TRAFFIC = {
    "forward": (2, 1, 0.0),
    "backward": (3, 2, 0.0),
    "backward_output": (3, 2, 0.0),
    "backward_bits": (2, 1, 1 / 8),
}


class Kernel(NamedTuple):
    direction: str
    dtype: str
    activation: str  # none for backward_bits, which is the same for all
    drops: bool
    size: int  # of an element
    registers: int
    spills: int
    loads: int
    stores: int
    instructions: float  # for each element
    slots: float
    pipe: str

    @property
    def share(self) -> float:
        """Of the memory's time, that of the busiest pipe."""
        elements, _, bits = TRAFFIC[self.direction]
        return self.slots / (SLOTS_A_BYTE * (elements * self.size + bits))

    def faults(self) -> list[str]:
        found = [f"{self.spills} spills"] if self.spills else []
        loads, stores = wide_accesses(self.direction, self.size)
        if (self.loads, self.stores) != (loads, stores):
            found.append(f"{self.loads} and {self.stores} of {loads} loads and {stores} stores")
        return found


def wide_accesses(direction: str, size: int) -> tuple[int, int]:
    """Return how many 128-bit loads and stores a thread's share of a tile takes."""
    vectors = SHARE[size] * size // 16
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
    cubin = f"{folder}/{source.stem}.cubin"
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
        loop = sass.main_loop(body, wide_accesses(direction, size)[0])
        slots, pipe = sass.busiest(loop) if loop else (0, "")
        kernels.append(
            Kernel(
                direction,
                dtype,
                re.sub(r"(?<!^)([A-Z])", r"_\1", what[5] or "").lower().replace("log_s", "logs"),
                what[2] == "true",
                size,
                int(registers[name]),
                sass.count(body, r"STL|LDL"),
                sass.count(loop, r"LDG\S*\.128"),
                sass.count(loop, r"STG\S*\.128"),
                len(loop) / SHARE[size],
                slots / SHARE[size],
                pipe,
            )
        )
    return kernels


def markdown(kernels: list[Kernel], release: str) -> str:
    """Return the tables of docs/cuda_kernels.md."""
    by = {(k.direction, k.dtype, k.activation, k.drops): k for k in kernels}
    dtypes = [dtype for dtype, _ in DTYPES.values()]
    lines = [HEAD.format(release=release)]
    for direction, title in TITLES.items():
        lines += [f"## {title}", ""]
        columns = [f"{dtype}{', p > 0' * drops}" for dtype in dtypes for drops in (0, 1)]
        lines.append(f"| activation | {' | '.join(columns)} |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for activation in dict.fromkeys(k.activation for k in kernels if k.direction == direction):
            cells = []
            for dtype in dtypes:
                for drops in (False, True):
                    kernel = by.get((direction, dtype, activation, drops))
                    share = f" ({100 * kernel.share:.0f} %)" if kernel else ""
                    cells.append(f"{kernel.instructions:.0f}{share}" if kernel else "")
            lines.append(f"| {activation or 'any'} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


TITLES = {
    "forward": "Forward",
    "backward": "Backward",
    "backward_output": "Backward from the output",
    "backward_bits": "Backward from bits (dropout: where the mask is drawn again)",
}
HEAD = """\
# The CUDA kernels in instructions

Instructions that a thread executes for each element in the main loop, counted in the machine code
for sm_90 by `make cuda ARGS=--markdown`, {release}. It is the cheapest way through: whole, aligned
tiles, the penalty on the activation (on a dropped output it takes one or two more), backward
without L2 (which takes up to one more), forward without leaving bits. In brackets: what the busiest
part of a multiprocessor needs for them, as a share of the time in which an H200 (132
multiprocessors, 1.98 GHz, 4.8 TB/s by the datasheet) moves the element's bytes: below 100 % memory
is the limit. For an H100 (3.35 TB/s) all of them are 0.7 times as large. Nothing on this page was
timed.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--markdown", action="store_true", help="write docs/cuda_kernels.md")
    arguments = parser.parse_args()
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(os.cpu_count()) as workers,
    ):
        parts = workers.map(lambda source: examine(source, arguments.arch, folder), sources)
        kernels = [kernel for part in parts for kernel in part]
    print(f"{'kernel':44} registers spills loads stores instructions  % of H200's memory time")
    bad = 0
    for k in kernels:
        faults = k.faults()
        bad += bool(faults)
        name = f"{k.direction} {k.dtype} {k.activation}{', dropout' * k.drops}"
        share = f"{100 * k.share:14.0f} ({k.pipe})" if arguments.arch == "sm_90" else ""
        print(
            f"{name:44} {k.registers:9} {k.spills:6} {k.loads:5} {k.stores:6} "
            f"{k.instructions:12.1f} {share} {'FAILED: ' * bool(faults)}{', '.join(faults)}"
        )
    if arguments.markdown:
        release = re.findall(r"release ([\d.]+)", run(NVCC, "--version"))[0]
        (ROOT / "docs" / "cuda_kernels.md").write_text(markdown(kernels, f"nvcc {release}"))
    print(f"{len(kernels)} kernels for {arguments.arch}, {bad} failed")
    return 1 if bad or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
