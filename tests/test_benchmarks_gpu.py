"""What the benchmark does on a GPU only, on a simulated one: a clock, a queue and a counter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as program
from benchmarks import machine, memory, places, report, results, timing
from benchmarks.cases import Case

HERTZ = 1e9  # cycles of the simulated GPU in a second
L2 = 1 << 16  # bytes
ROOT = Path(__file__).parents[1]


class Gpu:
    """Seconds of the host, and until when the GPU is busy. A launch takes the host some time."""

    def __init__(self, launch: float = 5e-6) -> None:
        self.now = self.free = 0.0
        self.launch, self.launched = launch, 0

    def run(self, seconds: float) -> None:
        """A kernel."""
        self.now += self.launch
        self.free = max(self.free, self.now) + seconds
        self.launched += 1

    def sleep(self, cycles: int) -> None:
        self.free = max(self.free, self.now) + cycles / HERTZ

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        made = SimpleNamespace()

        def record() -> None:
            made.at = max(self.free, self.now)

        def synchronize() -> None:
            self.now = max(self.now, made.at)

        made.record, made.synchronize = record, synchronize
        made.query = lambda: made.at <= self.now
        made.elapsed_time = lambda end: (end.at - made.at) * 1e3
        return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Is what the stopwatch takes for the GPU and for the time."""
    made = Gpu()
    monkeypatch.setattr(timing, "cuda", SimpleNamespace(Event=made.event, _sleep=made.sleep))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.mark.parametrize("seconds", [1e-3, 20e-6, 1e-6])
def test_the_time_is_the_kernels(gpu: Gpu, seconds: float) -> None:
    """Also where the host needs longer to launch a kernel than the GPU to run it."""
    lap = timing.Stopwatch("cuda")([lambda: gpu.run(seconds)], 100)
    assert lap.device == pytest.approx(seconds)
    assert lap.host == pytest.approx(gpu.launch)


def test_a_host_that_is_slow_is_waited_for(gpu: Gpu) -> None:
    """The queue is made longer, and what was measured before is thrown away."""
    watch = timing.Stopwatch("cuda")
    gpu.launch = 3 * watch.lead / HERTZ / 100
    assert watch([lambda: gpu.run(1e-6)], 100).device == pytest.approx(1e-6)
    assert gpu.launched == 300


def test_a_sample_is_long_enough_and_not_too_long(gpu: Gpu) -> None:
    watch = timing.Stopwatch("cuda")
    assert watch.calls([lambda: gpu.run(10e-6)], 1e-3) == 100
    assert watch.calls([lambda: gpu.run(1e-6)], 1e-3) == timing.GPU_CALLS[1]
    assert watch.calls([lambda: gpu.run(1.0)], 1e-3) == timing.GPU_CALLS[0]


@pytest.fixture
def host_as_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors asked for on "cuda" are the host's, and torch.cuda answers as if there were one."""
    randn = torch.randn

    def on_host(*shape: Any, device: str | None = None, **options: Any) -> Tensor:
        assert device in (None, "cuda")
        return randn(*shape, **options)

    properties = SimpleNamespace(
        name="Simulated GPU", major=9, minor=0, multi_processor_count=1, total_memory=2**33
    )
    properties.L2_cache_size = L2
    simulated: dict[str, Callable[..., Any]] = {
        "get_device_properties": lambda device: properties,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 5000,
        "memory_reserved": lambda: 1000,
        "mem_get_info": lambda: (2**33, 2**33),
    }
    for name, function in simulated.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch, "randn", on_host)
    monkeypatch.setattr(timing, "cuda", SimpleNamespace(Event=HostEvent, _sleep=lambda cycles: 0))
    monkeypatch.setattr(program, "_has_gpu", lambda: True)
    monkeypatch.setattr(machine, "nvidia_smi", lambda: {"driver_version": "1.2"})
    monkeypatch.setattr(memory, "_events", lambda call, activities: call() and profiled())
    yield


class HostEvent:
    """Of a device that has run all when the host has called it; never waits for a launch."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: HostEvent) -> float:
        return (end.at - self.at) * 1e3


def profiled() -> list[SimpleNamespace]:
    """Two kernels, a copy, a fill and an annotation on the device, and what the host did."""
    names = ("forward_kernel", "backward_kernel", "Memcpy DtoH", "Memset (Device)", "## Graph ##")

    def event(name: str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=lambda: name,
            device_type=lambda: SimpleNamespace(name=kind),
            is_user_annotation=lambda: name.startswith("##"),
        )

    return [*(event(name, "CUDA") for name in names), event("aten::relu", "CPU")]


@pytest.mark.usefixtures("host_as_gpu")
def test_a_profile_that_sees_nothing_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = iter([[], profiled(), [], []])
    monkeypatch.setattr(memory, "_events", lambda call, activities: next(profiles))
    assert memory.launches(lambda: None, "cuda") == 2
    assert memory.launches(lambda: None, "cuda") is None


@pytest.mark.usefixtures("host_as_gpu")
@pytest.mark.parametrize("elements", [16, 4096, 2**20])
def test_inputs_leave_the_cache(elements: int) -> None:
    """Until they come again, the others have gone through it some times; of tiny ones 64 are."""
    xs, _ = places.inputs(Case("call", "relu", "float32", 0.1, "both", elements), "cuda")
    assert len(xs) >= 2 and len({x.data_ptr() for x in xs}) == len(xs)
    together = sum(x.numel() * x.element_size() for x in xs)
    assert len(xs) == 64 or together >= places.CACHES * L2


@pytest.mark.usefixtures("host_as_gpu")
def test_a_session_on_a_gpu_makes_its_page(tmp_path: Path) -> None:
    """From the command line to docs/performance.md, with every rival that is for a GPU."""
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    cpu = Path("results", "cpu.json")
    (tmp_path / cpu).write_text((ROOT / cpu).read_text())
    written = tmp_path / "results" / "gpu.json"
    options = "--activations relu --dtypes float32 --p 0.1 --sizes 4096 --places call"
    options += " --rounds 3 --no-fill --seconds 600"  # compiler by compiler, then
    command = ["--device", "cuda", "--preset", "gpu", *options.split(), "--json", str(written)]
    assert program.main(command) == 0
    made = results.load(written)
    assert made["machine"]["name"] == "Simulated GPU" and made["machine"]["l2_bytes"] == L2
    rivals = {"copy", "act_reg", "eager", "compile", "max-autotune", "cooperative"}
    for group in made["groups"]:
        assert set(group["times"]["forward"]) == rivals and not group["failed"]
        assert group["memory"]["act_reg"]["launches"] == 2
        assert group["memory"]["act_reg"]["peak"] == 4000
    report.write(tmp_path)
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert "forward, than eager | forward, than compile | forward, than max-autotune |" in page
    assert page.count("## GPU: Simulated GPU") == 1 and "No GPU was timed" not in page
    readme = (tmp_path / "README.md").read_text()
    assert "### On a GPU\n\n" in readme and "Simulated GPU, driver 1.2" in readme
