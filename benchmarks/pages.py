"""The text of README.md's performance section and of docs/performance.md, from results alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import markdown
from .figures import expected
from .results import is_part, whole
from .table import Call, calls_of, size

HONEST = """\
Every rival is held against float64 before it is timed, and all of a case take turns within each
round. *Of the floor* is the speed as a share of the memory's own: forward `x.clone()`, backward
`torch.add(x, dy)`, each allocating its output. The rest is how many times faster `act_reg` is: than
plain PyTorch (activation, `abs().sum()`, `square().sum()`, `F.dropout`) and than `torch.compile` of
it; medians of the ratios of the same rounds. On Linux `act_reg` asks for huge pages where its
output has 32 MB or more, and the others do not (with `THP_MEM_ALLOC_ENABLE=1` they do): so it may
pass the floor there, or, where the host of a virtual machine has to find them first, miss it.
Single figures of such outputs vary severalfold with the memory that the system has at hand: a table
of large tensors in memory that is used again is in docs/performance.md."""

NO_GPU = """\
Not timed yet: no GPU was at hand, so no speed is claimed. [cuda_kernels.md]({docs}cuda_kernels.md)
has the instructions of each kernel, counted in its machine code, beside the time that its bytes
take. Where there is a GPU, this builds, tests, runs compute-sanitizer and times everything in under
ten minutes, without a network, and writes its results to `results/`, from which this section then
is made by `python -m benchmarks.report`:

    make gpu-check PYTHON=python3      # the Python that has PyTorch for CUDA, pytest and ninja"""

MORE = """\
[docs/performance.md](docs/performance.md) has every size, activation, type and penalty, networks, a
training step, the memory, large tensors where malloc keeps memory, and how all was measured."""

METHOD = """\
## How it is measured

- A sample lasts at least 200 us: small calls are repeated within it. Shown is the median of the
  rounds, and of times the 20th and 80th percentile. A provider has as many rounds as fit into its
  share of the time, four at least; every call is warmed up before, and garbage collection rests.
- Where tensors come to lie in memory, and with it what the caches can do, is decided by chance once
  in each process. So several processes, one after the other, measure all, and their rounds are
  taken together (`--processes`).
- On a GPU the time is that of CUDA events, behind a queue so full that launches do not count,
  unless a network launches more than the queue takes. There the inputs rotate among four times the
  bytes of the last cache. On the CPU the inputs stay where they are: what fits into a cache is
  timed in it, as it is behind the layer that wrote it.
- The penalties are `0.1 * a.abs().sum() + 0.1 * a.square().sum()`, of float16 summed in float32, as
  float16 would overflow; backward is the gradient of output and penalty together.
- Kept for backward: the storages that autograd packs, each counted once, without parameters. An
  input or output that is kept counts, though others may hold it too.
- Peak: the most that is allocated at one time above what was before, in forward and backward. On a
  GPU the allocator's high-water mark; on the CPU the running sum of the allocator's events in the
  profiler, which sees every tensor, also inside compiled code, and no scratch memory of libraries.
- Held against float64: output, penalty and gradient, by the norm of the difference over the norm.
  Beyond 8 units of its type's precision (64 in networks; the penalty, a sum, may be off by the root
  of its terms besides) a provider is not timed. Which elements dropout kept is read off the output
  and has to be a fair share; networks are checked without dropout."""

NETWORKS = """\
`mlp`: Linear 512 to 2048, the layer, Linear 2048 to 512. `ffn`: the same in a transformer, behind a
LayerNorm and with a residual. `sae`: the encoder of a sparse autoencoder with its L1 penalty.
`step`: forward, loss, backward and AdamW of the perceptron. `deep`: the same of eight Linear 512 to
512, each with the layer behind it. Elements are those of the layer. Most of the time is that of the
matrix products, which all share; what is compiled is compiled as a whole. In brackets the 20th and
80th percentile. Bytes are for each element of the layer; those of `deep` are of all eight layers
together."""

REUSED = """\
Malloc keeps what is freed (the benchmark tells glibc's to; tcmalloc and jemalloc do so unasked):
nobody waits for fresh pages. Where dropout or a curved activation keeps `act_reg` from the floor
here, it is by arithmetic, on this number of cores: the ten rounds of Philox, the polynomials."""

BUSY = 0.5  # of the cores


def section(found: Sequence[dict[str, Any]], figures: str) -> str:
    """What stands between the markers of README.md."""
    parts = []
    for results in whole(found):
        calls = calls_of(results)
        is_cpu = results["machine"]["device"] == "cpu"
        head = "" if is_cpu else "### On a GPU\n\n"
        parts.append(head + where(results["machine"]) + "." + (f"\n{HONEST}" if is_cpu else ""))
        parts.append(busy(results["machine"]))
        parts.append(figure(results, "size", figures))
        main = [call for call in calls if is_main(call)]
        parts.append(markdown.ratios(main, ("activation", "dtype", "p"), complete=True))
        parts += [markdown.smallest(calls), markdown.steps(calls), "    " + results["command"]]
    if len(whole(found)) == 1:
        parts.append("### On a GPU\n\n" + NO_GPU.format(docs="docs/"))
    return joined([*parts, MORE])


def page(found: Sequence[dict[str, Any]], figures: str, notes: Sequence[str]) -> str:
    """All of docs/performance.md."""
    head = "Written by `python -m benchmarks.report` from `results/`: not to be edited."
    parts = ["# Performance", f"{head}\n{HONEST}", METHOD]
    for results in found:
        parts += reused_part(results) if is_part(results) else machine_part(results, figures)
    if len(whole(found)) == 1:
        parts.append("## On a GPU\n\n" + NO_GPU.format(docs=""))
    return joined([*parts, *notes])


def machine_part(results: dict[str, Any], figures: str) -> list[str]:
    """All of one results file."""
    machine, calls = results["machine"], calls_of(results)
    device = {"cpu": "On a CPU", "cuda": "On a GPU"}[machine["device"]]
    sizes, kinds, types, terms = (
        [call for call in calls if title in call.slices]
        for title in ("size", "activation", "dtype", "penalty")
    )
    blocks = [call for call in calls if call.case["place"] != "call"]
    return [
        f"## {device}: {machine['name']}",
        busy(machine),
        markdown.machine(results),
        markdown.providers(results),
        titled("### Sizes", setting(sizes), figure(results, "size", figures)),
        markdown.times(sizes, ("elements", "direction")),
        markdown.smallest(calls),
        titled("### Activations", setting(kinds), figure(results, "activations", figures)),
        markdown.ratios(kinds, ("activation", "dtype", "p")),
        titled("### Types", setting(types), markdown.ratios(types, ("activation", "dtype", "p"))),
        titled("### Penalties", setting(terms), markdown.ratios(terms, ("penalty", "p"))),
        titled("### In networks", NETWORKS, markdown.blocks(blocks)),
        titled("### Memory", setting(kinds), figure(results, "memory", figures)),
        markdown.memory(kinds),
        titled(
            "### Held against float64",
            "The largest errors of each in all cases: of output and gradient, of the penalty.",
            markdown.errors(results),
        ),
        titled("### Not in these tables", "", markdown.omissions(results)),
    ]


def reused_part(results: dict[str, Any]) -> list[str]:
    """Of one results file with reused memory."""
    calls = calls_of(results)
    return [
        f"## With memory that is used again\n\n{where(results['machine'])}. {REUSED}",
        busy(results["machine"]),
        markdown.ratios(calls, ("activation", "dtype", "p", "elements")),
        "    " + results["command"],
        markdown.omissions(results),
    ]


def is_main(call: Call) -> bool:
    """In the table of README.md: two activations in two types, where memory is the limit."""
    return (
        "dtype" in call.slices
        and call.case["activation"] in ("relu", "gelu")
        and call.case["dtype"] in ("float32", "bfloat16")
    )


def setting(calls: Sequence[Call]) -> str:
    """What all of them have in common."""

    def only(axis: str) -> Any:
        values = {call.case[axis] for call in calls}
        return values.pop() if len(values) == 1 else None

    if not calls:
        return ""
    penalty = {"both": "L1 and L2", "l1": "L1", "l2": "L2", "none": "no penalty"}
    elements, p, terms = only("elements"), only("p"), only("penalty")
    parts = [
        only("activation"),
        only("dtype"),
        f"{size(elements)} elements" if elements else None,
        penalty[terms] if terms else None,
        f"dropout of {p:g}" if p is not None else None,
    ]
    return ", ".join(part for part in parts if part) + "."


def where(machine: dict[str, Any]) -> str:
    if machine["device"] == "cuda":
        driver = machine["before"].get("nvidia_smi", {}).get("driver_version", "unknown")
        return f"{machine['name']}, driver {driver}, torch {machine['torch']}"
    threads = f"{machine['threads']} threads on {machine['cpus']} cores"
    return f"{machine['name']}, {machine['instructions']}, {threads}, torch {machine['torch']}"


def busy(machine: dict[str, Any]) -> str:
    """A warning where others worked on the machine: threads that wait for each other wait for them.

    The load is that before the session, which has no part in it.
    """
    load = machine["before"].get("load") or 0.0
    if machine["device"] == "cuda" or load < BUSY * machine["cpus"]:
        return ""
    return (
        f"**Others kept the machine busy (a load of {load:.1f} on {machine['cpus']} cores): these "
        "figures are to be measured again, not to be quoted.**"
    )


def figure(results: dict[str, Any], name: str, folder: str) -> str:
    path = f"{results['machine']['device']}-{name}.svg"
    return f"![{name}]({folder}/{path})" if path in expected(results) else ""


def titled(title: str, *parts: str) -> str:
    """Nothing where the last part, which the title is of, is nothing."""
    return "\n\n".join(part for part in (title, *parts) if part) if parts[-1] else ""


def joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"
