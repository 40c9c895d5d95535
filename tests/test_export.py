"""Exported programs: without dropout they hold operators of torch alone, so they run without us."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actreg_ext import convert
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg
from tests import table

pytestmark = [
    pytest.mark.usefixtures("nothing_compiled_yet"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec"),  # of torch itself
]

# Prevents the import of this package, like a machine where it is not installed.
WITHOUT_US = "import sys; sys.modules['actreg_ext'] = None\n"


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"l1": 0.5, "l2": 0.25, "p": 0.5, **options}
    return nn.Sequential(
        nn.Linear(4, 8),
        ActReg("gelu", **options),
        ActReg("identity", p=0.1),
        nn.Linear(8, 8),
        ActReg("leaky_relu", negative_slope=0.2, inplace=True, **options),
        nn.Linear(8, 3),
    ).eval()


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """The namespaces of the operators in a program, and their names."""
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def run_without_us(code: str, folder: Path) -> None:
    """Run code in a process that cannot import this package."""
    script = WITHOUT_US + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("decomposed", [True, False])
def test_exported_programs_are_of_torch_alone(
    strict: bool, decomposed: bool, tmp_path: Path
) -> None:
    model, x = network(), torch.randn(5, 4)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    if decomposed:
        program = program.run_decompositions()
    names = operators(program)
    assert all(name.startswith("aten.") for name in names), names
    assert "aten.gelu.default" in names
    for rows in (5, 7):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(program.module()(x), model(x))
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save((x, model(x)), tmp_path / "expected.pt")
    run_without_us(
        """
        import torch
        x, expected = torch.load("expected.pt")
        y = torch.export.load("model.pt2").module()(x)
        torch.testing.assert_close(y, expected)
        """,
        tmp_path,
    )


@pytest.mark.parametrize("activation", table.VARIANTS, ids=table.describe)
def test_every_activation_is_of_torch_alone(activation: dict[str, Any]) -> None:
    model, x = nn.Sequential(ActReg(l1=0.5, p=0.5, **activation)).eval(), torch.randn(5, 4)
    program = torch.export.export(model, (x,), strict=False)
    assert all(name.startswith("aten.") for name in operators(program))
    torch.testing.assert_close(program.module()(x), model(x))
    traced = torch.jit.trace(model, x)
    assert "actreg::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x[:2]), model(x[:2]))


def test_the_function_without_dropout_is_of_torch_alone() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(act_reg(x, "tanh", l1=0.5, l2=0.25))  # type: ignore[return-value]

    x = torch.randn(5, 4)
    for strict in (True, False):
        program = torch.export.export(Block(), (x,), strict=strict)
        assert all(name.startswith("aten.") for name in operators(program))
        torch.testing.assert_close(program.module()(x), tuple(act_reg(x, "tanh", l1=0.5, l2=0.25)))


def test_in_training_with_dropout_the_operator_stays() -> None:
    program = torch.export.export(network().train(), (torch.randn(5, 4),), strict=False)
    assert "actreg.forward.default" in operators(program)


@pytest.mark.rare
def test_aot_inductor(tmp_path: Path) -> None:
    model, x = network(), torch.randn(5, 4)
    program = torch.export.export(model, (x,), strict=False)
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles faster
    )
    torch.save((x, model(x)), tmp_path / "expected.pt")
    assert Path(package) == tmp_path / "model.pt2"
    run_without_us(
        """
        import torch
        x, expected = torch.load("expected.pt")
        y = torch._inductor.aoti_load_package("model.pt2")(x)
        torch.testing.assert_close(y, expected)
        """,
        tmp_path,
    )


def test_jit_trace(tmp_path: Path) -> None:
    model, x = network(), torch.randn(5, 4)
    traced = torch.jit.trace(model, x)
    traced.save(str(tmp_path / "model.pt"))
    torch.save((x, model(x)), tmp_path / "expected.pt")
    run_without_us(
        """
        import torch
        x, expected = torch.load("expected.pt")
        torch.testing.assert_close(torch.jit.load("model.pt")(x), expected)
        """,
        tmp_path,
    )


def test_jit_script_says_why_not() -> None:
    model = network()
    modules = list(model.modules())
    with pytest.raises(RuntimeError, match=r"use torch\.jit\.trace\(model\.eval\(\)"):
        torch.jit.script(model)
    assert list(model.modules()) == modules


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(
        nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)
    )
    convert(model, l1=1e-3)
    model.eval()
    x = torch.randn(5, 4)
    path = str(tmp_path / "model.onnx")
    batch = torch.export.Dim("batch", min=2)
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (5, 7):
        x = torch.randn(rows, 4)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_is_saved_for_torchscript_in_memory() -> None:
    model, x = network(), torch.randn(5, 4)
    file = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.trace(model, x)), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


def test_symbolic_trace_of_the_module_alone_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"nn\.Sequential"):
        torch.fx.symbolic_trace(ActReg("relu"))
    assert torch.fx.symbolic_trace(nn.Sequential(ActReg("relu")))(torch.ones(2)).sum() == 2
