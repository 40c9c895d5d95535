"""The benchmark tool: its statistics, its checks and its pages; nothing here is timed."""

from __future__ import annotations

import copy
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import actreg_ext
from actreg_ext.functional import act_reg
from benchmarks import __main__ as program
from benchmarks import (
    callgrind,
    cases,
    compare,
    correctness,
    memory,
    places,
    report,
    results,
    session,
    timing,
)
from benchmarks.cases import Case
from benchmarks.places import inputs, subject
from benchmarks.providers import PROVIDERS, Provider, coefficients
from benchmarks.timing import Lap, Pace, Spread

ROOT = Path(__file__).parents[1]
CASE = Case("call", "gelu", "float32", 0.1, "both", 4096)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """The same networks, less wide: their time is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "WIDTH", 16)
        patch.setattr(places, "HIDDEN", 64)
        yield


def laps(*seconds: float) -> dict[int, Lap]:
    return {turn: Lap(each, each) for turn, each in enumerate(seconds)}


def test_spread_of_known_numbers() -> None:
    assert timing.spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert timing.spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down threefold in the middle changes no ratio."""
    ours, theirs = laps(1.0, 1.0, 3.0, 3.0, 3.0), laps(2.0, 2.0, 6.0, 6.0, 6.0)
    assert timing.paired(theirs, ours) == Spread(2.0, 2.0, 2.0)
    del theirs[0]
    assert timing.paired(theirs, ours) == Spread(2.0, 2.0, 2.0)


class Clock:
    """A stopwatch without time: each call costs what its rival is said to cost."""

    def __init__(self) -> None:
        self.order: list[Any] = []

    def __call__(self, runs: Any, calls: int) -> Lap:
        self.order.append(runs[0]())
        return Lap(1.0, 1.0)

    def calls(self, runs: Any) -> int:
        return 1


def test_rivals_take_turns() -> None:
    clock = Clock()
    rivals: dict[str, Any] = {"a": [lambda: "a"], "b": [lambda: "b"]}
    found = timing.interleaved(rivals, Pace(math.inf, 3, 3), clock)  # type: ignore[arg-type]
    assert "".join(clock.order) == "abbaab"
    assert {name: len(taken) for name, taken in found.items()} == {"a": 3, "b": 3}


def test_who_has_spent_its_time_stops() -> None:
    rivals: dict[str, Any] = {"a": [lambda: "a"]}
    found = timing.interleaved(rivals, Pace(0.0, 2, 9), Clock())  # type: ignore[arg-type]
    assert len(found["a"]) == 2


def test_a_sample_is_long_enough() -> None:
    calls = timing.Stopwatch("cpu").calls([lambda: None], 1e-3)
    assert calls > 100


def is_right(provider: Provider, case: Case = CASE) -> bool:
    xs, dy = inputs(case, "cpu")
    xs[0].data.flatten()[:64] = 0.0  # there no output shows which elements dropout kept
    timed = subject(case, provider, xs, dy)
    return correctness.Judge(case, xs[0]).error(provider, timed).is_right(case)


@pytest.mark.parametrize("place", cases.PLACES)
@pytest.mark.parametrize("name", ["act_reg", "eager", "plain"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_providers_are_right(name: str, dtype: str, place: str) -> None:
    case = CASE._replace(dtype=dtype, place=place)
    assert is_right(PROVIDERS[name], case)


def wrong_gradient(case: Case) -> Any:
    def layer(x: torch.Tensor) -> Any:
        y, penalty = PROVIDERS["eager"].layer(case)(x)  # type: ignore[misc]
        return y + 0.01 * (x - x.detach()), penalty

    return layer


def changed(**options: Any) -> Callable[[Case], Any]:
    def layer(case: Case) -> Any:
        arguments = {"activation": case.activation, "p": case.p, "reduction": "sum"}
        return partial(act_reg, **{**arguments, **coefficients(case), **options})

    return layer


WRONG = {
    "another activation": changed(activation="gelu_tanh"),
    "no dropout": changed(p=0.0),
    "too much dropout": changed(p=0.2),
    "penalty without L1": changed(l1=0.0),
    "penalty of the mean": changed(reduction="mean"),
    "penalty after dropout": changed(penalty_on="output"),
    "gradient off by a hundredth": wrong_gradient,
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_providers_are_found(what: str) -> None:
    provider = replace(PROVIDERS["act_reg"], layer=WRONG[what])
    if what.startswith("gradient"):
        provider = replace(PROVIDERS["eager"], layer=WRONG[what])
    assert not is_right(provider)


def test_wrong_blocks_are_found() -> None:
    provider = replace(PROVIDERS["act_reg"], layer=WRONG["another activation"])
    case = CASE._replace(place="mlp")
    assert not is_right(provider, case)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Results of a real session, of two cases; one provider is wrong, and one fails."""
    names = ["copy", "act_reg", "eager", "act_reg-compile", "compile", "plain"]
    sides = ["forward", "backward"]
    plan = [
        cases.Planned(CASE, sides, names, ["size"]),
        cases.Planned(CASE._replace(place="mlp"), sides, names, ["networks"]),
        cases.Planned(CASE._replace(place="step"), ["step"], names, ["training step"]),
    ]

    def fail(case: Case) -> Any:
        raise RuntimeError("does not run")

    planted = {  # under names that the results may have, and compiled by nobody
        "act_reg-compile": replace(PROVIDERS["act_reg"], layer=WRONG["another activation"]),
        "compile": replace(PROVIDERS["eager"], layer=fail),
    }
    machine = {"device": "cpu", "name": "a CPU", "threads": 2, "cpus": 2, "commit": "0" * 40}
    machine |= {"instructions": "AVX2", "torch": "2", "python": "3", "before": {"load": 0.5}}
    made = results.collect(machine, "python -m benchmarks", "published", ["size"])
    with pytest.MonkeyPatch.context() as patch:
        for name, provider in planted.items():
            patch.setitem(PROVIDERS, name, replace(provider, name=name))
        for group in session.Session("cpu", Pace(0.0, 3, 3)).groups(plan):
            results.add(made, group)
    return results.finished(made)


def test_a_session_times_what_is_right(found: dict[str, Any]) -> None:
    call, block, step = found["groups"]
    assert list(call["times"]["forward"]) == ["copy", "act_reg", "eager", "plain"]
    assert list(block["times"]["backward"]) == ["act_reg", "eager", "plain"]
    ours, theirs = (call["times"]["forward"][name] for name in ("act_reg", "eager"))
    assert ours["rounds"] == 3 and ours["seconds"][1] <= ours["seconds"][0] <= ours["seconds"][2]
    assert "per_copy" in ours and "per_act_reg" not in ours and "per_act_reg" in theirs
    assert all("per_plain" in step["times"]["step"][name] for name in ("act_reg", "eager"))
    wrong = "\n".join(results.wrong(found))
    assert "act_reg-compile: call gelu" in wrong and "RuntimeError: does not run" in wrong


def test_rounds_of_two_sittings_are_taken_together(found: dict[str, Any]) -> None:
    """Ratios are of the same round of the same sitting, whoever else had how many."""
    empty: dict[str, Any] = {"errors": {}, "failed": {}, "memory": {}}
    group = {**found["groups"][0], **empty}
    first = {"copy": laps(1.0), "act_reg": laps(1.0, 1.0), "eager": laps(4.0, 4.0, 4.0)}
    second = {"act_reg": laps(2.0, 2.0, 2.0), "compile": laps(6.0, 10.0)}
    pooled: dict[str, Any] = {"groups": []}
    for sitting in (first, second):
        results.add(pooled, {**group, "laps": {"forward": sitting}})
    times = results.finished(pooled)["groups"][0]["times"]["forward"]
    assert times["act_reg"]["rounds"] == 5 and times["act_reg"]["seconds"][0] == 2.0
    assert times["eager"]["per_act_reg"] == [4.0, 4.0, 4.0]
    assert times["compile"]["per_act_reg"][0] == 4.0 and times["compile"]["rounds"] == 2
    assert "per_copy" not in times["compile"]  # the copy had no round with it
    assert "laps" not in results.finished(pooled)["groups"][0]


def test_processes_are_taken_together(tmp_path: Path) -> None:
    file = tmp_path / "pooled.json"
    narrow = "--providers copy act_reg --places call --activations relu --dtypes float32 --p 0"
    options = f"--penalties l1 --sizes 16 --rounds 2 --processes 2 --json {file}"
    command = [sys.executable, "-m", "benchmarks", *narrow.split(), *options.split()]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    made = results.load(file)
    assert made["machine"]["processes"] == 2
    for group in made["groups"]:
        assert [group["times"]["forward"][name]["rounds"] for name in ("copy", "act_reg")] == [4, 4]


def test_results_survive_the_file(found: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results.save(found, path)
    assert results.load(path) == found == json.loads(path.read_text())
    assert results.digest(results.load(path)) == results.digest(found)


@pytest.mark.parametrize("line", ["not json", "[]", '{"schema": 0}'])
def test_other_files_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.json").write_text(line)
    with pytest.raises(results.Unfit):
        results.load(tmp_path / "x.json")


def slowed(found: dict[str, Any], factor: float, noise: float = 1.0) -> dict[str, Any]:
    other = copy.deepcopy(found)
    for group in other["groups"]:
        for times in group["times"].values():
            for name, row in times.items():
                for key, size in (("per_copy", factor), ("per_act_reg", 1 / factor)):
                    if (name == "act_reg") == (key == "per_copy") and key in row:
                        middle = row[key][0] * size
                        row[key] = [middle, middle / noise, middle * noise]
    return other


@pytest.mark.parametrize(
    ("factor", "noise", "code"),
    [(1.0, 1.0, 0), (1.05, 1.0, 0), (1.3, 1.0, 1), (1.3, 2.0, 0), (0.5, 1.0, 0)],
)
def test_compare_tells_what_got_slower(
    found: dict[str, Any], tmp_path: Path, factor: float, noise: float, code: int
) -> None:
    """1.3 times is slower, unless it is within the noise."""
    good = copy.deepcopy(found)
    for group in good["groups"]:
        group["failed"], group["errors"] = {}, dict.fromkeys(group["errors"], [0.0, 0.0])
        group["errors"].pop("act_reg-compile", None)
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    results.save(slowed(good, 1.0), old)
    results.save(slowed(good, factor, noise), new)
    changes = compare.changes(results.load(old), results.load(new))
    assert len(changes) == 5
    assert all(change.ratio == pytest.approx(factor) for change in changes)
    assert program.main(["--results", str(new), "--compare", str(old)]) == code


def test_quick_is_these_cases() -> None:
    plan = cases.plan(cases.PRESETS["quick"])
    timed = {(item.case.place, item.case.activation) for item in plan}
    assert {name for place, name in timed if place == "call"} == set(actreg_ext.activations())
    assert {place for place, _ in timed} == set(cases.PLACES)
    assert {item.case.dtype for item in plan} == set(cases.DTYPES)
    assert {item.case.penalty for item in plan} == set(cases.PENALTIES)
    assert {d for item in plan for d in item.directions} == set(cases.DIRECTIONS)
    assert len(plan) == len({item.case for item in plan}) == 40
    assert sum(len(item.directions) for item in plan if "compile" in item.providers) == 17


def test_options_narrow_a_preset() -> None:
    options = program.parser().parse_args(
        "--sizes 2^10 --activations relu --providers act_reg".split()
    )
    plan = cases.plan(program.sliced(options))
    assert {item.case.elements for item in plan} == {1024}
    assert {item.case.activation for item in plan if item.case.place == "call"} == {"relu"}
    assert {name for item in plan for name in item.providers} == {"act_reg"}


def test_rivals_for_a_gpu_are_absent_on_a_cpu() -> None:
    plan = session.chosen(cases.plan(cases.PRESETS["published"]), "cpu")
    named = {name for item in plan for name in item.providers}
    assert named == set(PROVIDERS) - {"max-autotune", "cooperative"}


def test_saved_bytes_count_storages_once() -> None:
    x, weight = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    assert memory.saved_bytes(lambda: x * x) == 256
    assert memory.saved_bytes(lambda: x * weight + x[:32].repeat(2)) == 512
    assert memory.saved_bytes(lambda: x * weight, [weight]) == 256


def test_peak_counts_what_is_gone_again() -> None:
    def call() -> torch.Tensor:
        large = torch.empty(1 << 20, dtype=torch.uint8)
        del large
        return torch.empty(1 << 18, dtype=torch.uint8)

    assert memory.peak_bytes(call, "cpu") == 1 << 20


def test_the_operator_keeps_less_than_plain_pytorch(found: dict[str, Any]) -> None:
    for group in found["groups"]:
        kept = {name: weighed["saved"] for name, weighed in group["memory"].items()}
        assert 0 < kept["act_reg"] < kept["eager"]


def test_pages_are_what_the_results_say() -> None:
    """README.md, docs/performance.md and the figures; python -m benchmarks.report renews them."""
    assert report.stale(report.read(ROOT), ROOT) == []


@pytest.fixture
def root(found: dict[str, Any], tmp_path: Path) -> Path:
    """A checkout with results and no pages yet."""
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    results.save(found, tmp_path / "results" / "cpu.json")
    return tmp_path


def test_a_page_changed_by_hand_is_stale(root: Path) -> None:
    found = report.read(root)
    assert report.stale(found, root) == ["README.md", "docs/performance.md"]
    report.write(root)
    assert report.stale(found, root) == []
    readme = (root / "README.md").read_text()
    assert readme.startswith(f"above\n{report.BEGIN}\n") and readme.endswith(
        f"{report.END}\nbelow\n"
    )
    assert "old" not in readme.splitlines()
    page = root / "docs" / "performance.md"
    page.write_text(page.read_text() + "By hand: 1000 times faster.\n")
    assert report.stale(found, root) == ["docs/performance.md"]


def test_counted_instructions_are_in_the_page(root: Path) -> None:
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "overhead.md").write_text("| a | table |\n")
    report.write(root)
    assert "\n\n| a | table |\n\n" in (root / "docs" / "performance.md").read_text()


@pytest.mark.parametrize(
    "machine",
    [
        {"device": "cuda"},
        {"device": "cuda", "capability": "9.0", "before": {"nvidia_smi": {"name": "a GPU"}}},
    ],
)
def test_a_gpu_has_to_have_made_its_figures(
    found: dict[str, Any], root: Path, machine: dict[str, Any]
) -> None:
    """Results that say cuda and name no GPU, or launched no kernel, are refused."""
    claimed = {**found, "machine": {**found["machine"], **machine}}
    results.save(claimed, root / "results" / "gpu.json")
    with pytest.raises(results.Unfit, match=r"gpu\.json"):
        report.write(root)


def test_reused_memory_is_an_addition(found: dict[str, Any], root: Path) -> None:
    """A part of the page beside the machine's own, and nothing without it or twice."""
    again = {**found, "preset": "reused", "command": "python -m benchmarks --preset reused"}
    results.save(again, root / "results" / "again.json")
    report.write(root)
    page = (root / "docs" / "performance.md").read_text()
    assert page.count("## Large tensors in reused memory") == page.count(again["command"]) == 1
    assert page.count("## CPU: a CPU") == page.count("\n## GPU\n") == 1
    assert again["command"] not in (root / "README.md").read_text()
    results.save(again, root / "results" / "twice.json")
    with pytest.raises(results.Unfit, match="each preset once"):
        report.write(root)
    (root / "results" / "twice.json").unlink()
    (root / "results" / "cpu.json").unlink()
    with pytest.raises(results.Unfit, match="one CPU"):
        report.write(root)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the preset is glibc's")
def test_memory_that_is_kept_is_used_again() -> None:
    """In a process of its own: no malloc of another test is to change."""
    program = """
import resource, torch
from benchmarks import machine
machine.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4): torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4): faults()  # until the heap has grown
assert faults() < 100, "of 65536"
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_every_kernel_has_its_instructions_counted() -> None:
    """The symbols that callgrind sees are those of all activations."""
    callgrind.every_kernel([torch.randn(8), torch.randn(8).bfloat16()], torch.tensor([1, 2]))
    page = (ROOT / "benchmarks" / "instructions.md").read_text()
    counted = re.findall(r"^\| `(\w+)` \|((?: (?:\d+\.\d)? ?\|){9})$", page, re.MULTILINE)
    assert [name for name, _ in counted] == list(actreg_ext.activations())
    blank = {name for name, cells in counted if "" in map(str.strip, cells.split("|")[:-1])}
    assert blank.isdisjoint(callgrind.TELLING)
    assert len(blank) + len(callgrind.TELLING) == len(counted)


def test_quick_results_are_not_published(found: dict[str, Any], root: Path) -> None:
    results.save({**found, "preset": "quick"}, root / "results" / "cpu.json")
    with pytest.raises(results.Unfit, match="has the preset quick"):
        report.write(root)
