"""Compile the CUDA kernels by nvcc alone and read their machine code: make cuda.

Prints for each kernel its registers, 128-bit loads and stores, instructions for each element and
each block, and the time of its busiest pipe as a share of the time that memory needs. Fails if a
main loop spills registers or has a load or store that is not 128 bits wide. --arch all compiles for
sm_80, sm_90, sm_100 and sm_120; --markdown writes docs/cuda_kernels.md.

Needs nvcc, and cuobjdump with nvdisasm: from the toolkit, or by pip install nvidia-cuda-cuobjdump
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
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import sass

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.markdown import rendered, table  # noqa: E402

NVCC = os.environ.get("NVCC", "nvcc")
KERNEL = r"(\w+)_kernel<(true|false), (?:\w+::)?(\w+)(?:, (\w+::OfOutput<)?\w+::(\w+))?>"
DTYPES = {"float": "float32", "double": "float64", "Half": "float16", "BFloat16": "bfloat16"}
SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}  # bytes of an element
ARCHITECTURES = ["sm_80", "sm_90", "sm_100", "sm_120"]


class Gpu(NamedTuple):
    architecture: str
    multiprocessors: int
    gigahertz: float  # boost clock
    terabytes: float  # each second


# From NVIDIA's datasheets, except for the clock of the B200, which they do not give.
GPUS = {
    "A100": Gpu("sm_80", 108, 1.41, 2.04),  # SXM, 80 GB
    "H100": Gpu("sm_90", 132, 1.98, 3.35),  # SXM
    "H200": Gpu("sm_90", 132, 1.98, 4.8),
    "B200": Gpu("sm_100", 148, 1.965, 8.0),
}
SHOWN = {"sm_80": "A100", "sm_90": "H200", "sm_100": "B200"}  # whose share is printed
TITLES = {
    "forward": "Forward",
    "forward_plain": "Forward without a penalty",  # another path through the same kernel
    "backward": "Backward",
    "backward_output": "Backward from the output",
    "backward_bits": "Backward from bits",
}


class Kernel(NamedTuple):
    architecture: str
    direction: str  # a key of TITLES
    dtype: str
    activation: str  # empty for backward_bits, which is the same for all
    drops: bool
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
        """Bytes that are read and written for each element."""
        elements = inputs(self.direction) + 1
        return elements * SIZES[self.dtype] + (1 / 8 if self.direction == "backward_bits" else 0)

    @property
    def blocks(self) -> int:
        """How many blocks of 256 threads a multiprocessor's registers hold."""
        return 65536 // (256 * (-(-self.registers // 8) * 8))

    def share(self, gpu: Gpu) -> float:
        """Return the time of the busiest pipe, over the time in which memory moves the bytes."""
        slots_a_second = gpu.multiprocessors * 4 * 32 * gpu.gigahertz * 1e9
        return self.slots / slots_a_second / (self.traffic / (gpu.terabytes * 1e12))

    def faults(self) -> list[str]:
        found = [f"{self.spills_in_loop} spills in the loop"] if self.spills_in_loop else []
        stores = vectors_at_once(self.direction, self.dtype)
        loads = stores * inputs(self.direction)
        if (self.loads, self.stores) != (loads, stores):
            found.append(f"{self.loads} and {self.stores} of {loads} loads and {stores} stores")
        return found


def inputs(direction: str) -> int:
    """Return how many tensors a kernel reads: x, and in backward dy, unless bits replace x."""
    return 2 if direction in ("backward", "backward_output") else 1


def vectors_at_once(direction: str, dtype: str) -> int:
    """Return how many vectors of each tensor a step takes: Note [Whole tiles and others]."""
    return 2 if SIZES[dtype] == 2 and direction.startswith("backward") else 4


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
        what = re.search(KERNEL, text)
        if what is None:
            continue  # curvature, which has no tiles
        dtype = DTYPES[what[3]]
        direction = what[1] + "_output" * bool(what[4])
        activation = re.sub(r"(?<!^)([A-Z])", r"_\1", what[5] or "").lower()
        activation = activation.replace("log_s", "logs")
        vectors = vectors_at_once(direction, dtype)
        elements = vectors * 16 // SIZES[dtype]
        loops = sass.main_loops(body, vectors * inputs(direction))
        directions = ["forward_plain", "forward"] if direction == "forward" else [direction]
        for kind, loop in zip(directions, [*loops, [], []], strict=False):
            slots, pipe = sass.busiest(loop, architecture) if loop else (0, "")
            end = sass.way(body, "STG", "EXIT", loop)
            if kind == "forward":  # through the blocks' protocol
                end = sass.way(body, "STG", "ATOM", loop) + sass.way(body, "ATOM", "EXIT", loop)
            spills = [sass.count(part, r"STL|LDL") for part in (body, loop)]
            wide = [sass.count(loop, rf"{access}\S*\.128") for access in ("LDG", "STG")]
            each = (len(loop) / elements, slots / elements)
            start = sass.way(body, "", r"LDG\S*\.128", loop)
            about = (architecture, kind, dtype, activation, what[2] == "true")
            used = int(registers[name])
            kernels.append(Kernel(*about, used, *spills, *wide, *each, pipe, start, end))
    return kernels


def instructions(kernels: list[Kernel], gpu: str, direction: str) -> str:
    """Return a direction's instructions and shares, by activation, dtype and dropout."""
    found = [k for k in kernels if (k.architecture, k.direction) == (GPUS[gpu][0], direction)]
    by = {(k.activation, k.dtype, k.drops): k for k in found}
    pairs = product(SIZES, (False, True))
    heads = {(dtype, drops): dtype + ", p > 0" * drops for dtype, drops in pairs}
    lines = []
    for activation in dict.fromkeys(k.activation for k in found):
        line = [activation or "any"]
        for column in heads:
            k = by.get((activation, *column))
            line.append(f"{k.instructions:.0f} ({100 * k.share(GPUS[gpu]):.0f} %)" if k else "")
        lines.append(line)
    return table(["activation", *heads.values()], lines)


def span(kernels: list[Kernel], column: str) -> str:
    """Return the least and the greatest number that the kernels have in a column."""
    values = [getattr(k, column) for k in kernels]
    return " to ".join(map(str, dict.fromkeys((min(values), max(values)))))


def page(kernels: list[Kernel]) -> str:
    """Return docs/cuda_kernels.md."""

    def find(**wanted: Any) -> list[Kernel]:
        return [k for k in kernels if all(getattr(k, name) == wanted[name] for name in wanted)]

    values = {"gpus": GPUS, "titles": TITLES, "dtypes": SIZES}
    values |= {"find": find, "span": span, "product": product}
    return rendered(
        ROOT / "tools" / "cuda_kernels.md.j2",
        release=re.findall(r"release ([\d.]+)", run(NVCC, "--version"))[0],
        instructions=partial(instructions, kernels),
        **values,
    )


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
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as workers:
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
        spills, failed = sum(k.spills > 0 for k in one_each), sum(bool(k.faults()) for k in found)
        kinds = f"{len(one_each)} kernels for {architecture}, {spills} spill outside their loop"
        print(f"{kinds}, {failed} failed")
    if arguments.markdown:
        (ROOT / "docs" / "cuda_kernels.md").write_text(page(kernels))
    return 1 if bad or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
