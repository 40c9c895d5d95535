"""Hypothesis strategies for random programs (programs.py), one for each family of programs.

Every list of choices begins with the simplest one, because hypothesis shrinks towards it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

import actreg_ext
from tests.memory import KINDS, Layout
from tests.programs import BEFORE, DTYPES, LAYERS, Call, Program
from tests.steps import (
    BATCHED,
    FORWARD,
    FUNCTORCH,
    HESSIANS,
    JACOBIANS,
    Derivative,
    Step,
    Tracer,
    Vmap,
    Wrapper,
)

Draw = Callable[[Any], Any]
Shape = tuple[int, ...]

# Parameters that are not the defaults; every kink is a multiple of 1/4.
PARAMETERS: dict[str, list[tuple[float, ...]]] = {
    "leaky_relu": [(0.25,), (-0.5,), (1.0,), (0.0,)],
    "elu": [(0.5,), (2.0,)],
    "celu": [(0.5,), (2.0,)],
    "swish": [(0.5,), (1.702,), (-1.0,), (0.0,)],
    "softplus": [(0.5, 20.0), (2.0, 1.0), (1.0, 40.0)],
    "hardtanh": [(0.5, 2.0), (-0.25, 0.75), (0.0, 1.0)],
    "hardshrink": [(0.25,), (0.0,)],
    "softshrink": [(0.25,), (0.0,)],
    "threshold": [(0.25, -3.0), (-0.5, 0.0), (0.5, 0.5)],
}
NAMES = ["silu", *[name for name in actreg_ext.activations() if name != "silu"]]
# More often: the activations whose second derivatives or kept tensors differ from the rest.
NAMES += ["relu", "relu", "tanh", "leaky_relu", "identity", "sigmoid"]
LARGE = [(9000,), (3, 50, 61), (2, 3, 40, 41), (17, 1, 700), (20000,), (8, 4099)]
SEEDS = [0, 1, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]
TENSOR_SEEDS = [(0, 0), (1, 2), (-1, 2**62), (2**62, -1), (5, 2**32)]


@st.composite
def calls(draw: Draw, form: str = "function") -> Call:
    name = draw(st.sampled_from(NAMES))
    choices: list[tuple[float, ...]] = PARAMETERS.get(name, [])
    if name != "threshold":  # threshold has no defaults
        choices = [(), *choices]
    return Call(
        activation=name,
        parameters=draw(st.sampled_from(choices)),
        l1=draw(st.sampled_from([0.0, 0.5, 0.3, 2.0])),
        l2=draw(st.sampled_from([0.0, 0.25, 0.7])),
        p=draw(st.sampled_from([0.0, 0.5, 0.5, 0.5, 0.1, 0.9, 1.0, 1e-6])),
        training=draw(st.sampled_from([True] * 9 + [False])),
        penalty_on=draw(st.sampled_from(["activation", "output"])),
        reduction=draw(st.sampled_from(["mean", "sum", "batch", "token"])),
        seed=draw(st.sampled_from([0, None, *SEEDS, *TENSOR_SEEDS])),
        form=form,
    )


@st.composite
def shapes(draw: Draw, least: int = 0, most: int = 4, sizes: tuple[int, ...] = ()) -> Shape:
    length = draw(st.integers(least, most))
    sizes = sizes or (2, 3, 1, 4, 5, 7, 0)
    return tuple(draw(st.sampled_from(sizes)) for _ in range(length))


@st.composite
def layouts(draw: Draw, shape: Shape, dtype: str) -> Layout:
    order: Shape = ()
    if len(shape) > 1 and draw(st.integers(0, 3)) > 0:
        order = tuple(draw(st.permutations(range(len(shape)))))
        if len(shape) > 3 and draw(st.booleans()):  # channels last
            order = (0, *range(2, len(shape)), 1)
    kinds = [kind for kind in KINDS if shape or kind not in ("sliced", "expanded")]
    if dtype not in ("float32", "float64"):
        kinds = [kind for kind in kinds if kind not in ("real", "imag of conj")]
    return Layout(
        kind=draw(st.sampled_from(["dense"] * 5 + kinds)),
        order=order,
        dim=draw(st.integers(0, max(len(shape) - 1, 0))),
        step=draw(st.integers(2, 3)),
        skipped=draw(st.sampled_from([0, 0, 1, 3])),
    )


@st.composite
def inputs(draw: Draw, call: Call, shape: Shape, **options: Any) -> Program:
    """A program with this call and shape, and a random dtype, layout and input."""
    dtypes = ["float32", "float32", *DTYPES]
    dtype = options.pop("dtype", None) or draw(st.sampled_from(dtypes))
    layout = draw(layouts(shape, dtype))
    # torch gives tangents the strides of x: elements of x that share memory would share tangents.
    if any(step.name() in FORWARD for step in options.get("steps", ())):
        if layout.kind in ("expanded", "overlapping"):
            layout = replace(layout, kind="dense")
    key = draw(st.integers(0, 7))
    return Program(call=call, shape=shape, layout=layout, dtype=dtype, key=key, **options)


def _before(draw: Draw, program: Program) -> Program:
    """Draw `Call.before`, the function between x and act_reg, from those that fit the program."""
    choices = ["nothing", "nothing", "nothing", "expand"]
    if program.example_shape:
        choices += ["transpose", "slice"]
    if program.call.form == "in place":
        choices = ["times 1", *(["view of times 1"] if program.example_shape else [])]
    elif not program.vmaps:
        choices += ["times 1"]
    before = draw(st.sampled_from(choices))
    call = replace(program.call, before=before)
    is_plain = before == "times 1" and program.layout == Layout()
    if program.vmaps and "times 1" in before and not is_plain:
        call = replace(call, p=0.0)  # vmap chooses the product's memory order
    if not program.vmaps and "module" not in call.form and draw(st.integers(0, 9)) == 9:
        call = replace(call, times=2)
    return replace(program, call=call)


@st.composite
def layout_programs(draw: Draw) -> Program:
    """Programs for values, masks, strides and the first gradient."""
    form = draw(st.sampled_from(["function", "function", "in place"]))
    call = draw(calls(form))
    is_large = draw(st.integers(0, 19)) == 19
    shape = draw(st.sampled_from(LARGE)) if is_large else draw(shapes(most=5))
    program = _before(draw, draw(inputs(call, shape)))
    steps: list[tuple[Step, ...]] = [(), (_autograd(draw, ("autograd.grad", "backward")),)]
    steps += [(Wrapper("no_grad"),), (Wrapper("inference_mode"),)]
    return replace(program, steps=draw(st.sampled_from(steps)))


def _autograd(draw: Draw, kinds: tuple[str, ...]) -> Derivative:
    return Derivative(
        how=draw(st.sampled_from(kinds)),
        key=draw(st.integers(0, 7)),
        order=draw(st.sampled_from("CF0S")),
        create_graph=draw(st.booleans()),
    )


@st.composite
def layer_programs(draw: Draw) -> Program:
    """Programs with the module between layers of other memory formats."""
    before = draw(st.sampled_from(["nothing", "times 1", *LAYERS]))
    call = draw(calls(draw(st.sampled_from(["module", "checkpointed module"]))))
    is_image = before.startswith("conv")
    shape = draw(shapes(3, 4) if is_image else shapes(1, 4))
    if is_image:
        shape = shape[:1] + tuple(size or 2 for size in shape[1:])
        shape = shape if len(shape) == 4 else (2, *shape)
    shape = shape[:-1] + (shape[-1] or 3,)
    after = ["nothing", "linear", *(["conv", "pool"] if len(shape) == 4 and 0 not in shape else [])]
    if before == "nothing" and len(shape) == 4 and min(shape[2:]) < 2:
        after = after[:3]
    dtype = draw(st.sampled_from(["float32", "float64"]))
    call = replace(call, before=before, after=draw(st.sampled_from(after)), seed=None)
    if is_image and min(shape[2:]) < 2 and call.after == "pool":
        call = replace(call, after="nothing")
    program = draw(inputs(call, shape, dtype=dtype))
    if dtype == "float32" and before == "linear" and draw(st.booleans()):
        return replace(program, steps=(_autograd(draw, ("backward",)), Wrapper("autocast")))
    wrappers: list[tuple[Step, ...]] = [()]
    if draw(st.booleans()):
        derivative = _autograd(draw, ("autograd.grad", "backward", "is_grads_batched"))
        wrappers = [(derivative,)]
        if call.form == "module":  # hooks may change the order of a repeated forward
            wrappers += [(derivative, *_hooks(draw))]
    return replace(program, steps=draw(st.sampled_from(wrappers)))


def _hooks(draw: Draw) -> tuple[Step, ...]:
    how = draw(st.sampled_from(["hooks", "hooks", "save_on_cpu"]))
    packs = ("identity", "contiguous", "column-major", "spread", "numpy")
    return (Wrapper(how, draw(st.sampled_from(packs)) if how == "hooks" else "identity"),)


@st.composite
def autograd_programs(draw: Draw) -> Program:
    """Programs with torch.autograd, hooks and checkpoints."""
    form = draw(st.sampled_from(["function", "function", "function", "in place"]))
    call = draw(calls(form))
    second = draw(st.booleans())
    matrices = ("autograd.functional.jacobian", "autograd.functional.hessian")
    kinds = ("autograd.grad", "twice", "backward", "is_grads_batched", "dual numbers", *matrices)
    first = _autograd(draw, kinds)
    steps: list[Step] = [first]
    if second and first.how != matrices[1]:
        inner = ("autograd.grad", "twice", "is_grads_batched")
        steps.append(replace(_autograd(draw, inner), create_graph=True))
    is_plain = first.how in ("autograd.grad", "twice", "backward", "is_grads_batched")
    if is_plain and draw(st.booleans()):
        reentrant = first.how == "backward" and len(steps) == 1 and draw(st.booleans())
        checkpoint = Wrapper("checkpoint, reentrant" if reentrant else "checkpoint")
        steps += draw(st.sampled_from([_hooks(draw), (checkpoint,)]))
    small = first.how in matrices or len(steps) > 1
    shape = draw(shapes(most=3 if small else 4, sizes=(2, 3, 1) if small else ()))
    program = _before(draw, draw(inputs(call, shape, steps=tuple(steps))))
    if first.how in matrices and call.seed is None:
        program = replace(program, call=replace(program.call, seed=1))
    if second and call.seed is None and "is_grads_batched" in [s.name() for s in steps]:
        program = replace(program, call=replace(program.call, seed=2))
    return program


@st.composite
def functorch_programs(draw: Draw) -> Program:
    """Programs that compose transforms of torch.func, up to the second derivative."""
    steps, numbers = _functorch_steps(draw, draw(st.integers(1, 3)))
    vmaps = [i for i, step in enumerate(steps) if isinstance(step, Vmap)]
    sizes = (2, 3, 1, 4) if numbers else ()
    shape = draw(shapes(least=len(vmaps), most=max(len(vmaps), 3 if numbers else 4), sizes=sizes))
    if numbers and math.prod(shape) > 24:
        shape = shape[: len(vmaps)] + shape[len(vmaps) : len(vmaps) + 1]
    rest = list(shape)
    for i in vmaps:  # the outermost vmap removes its dimension first
        if draw(st.integers(0, 7)) == 7:
            steps[i] = replace(steps[i], dim=None, size=draw(st.integers(1, 3)))
            continue
        dim = draw(st.integers(0, len(rest) - 1))
        if rest[dim] == 0:  # torch.vmap refuses a batch of 0 examples
            shape = tuple(size or 2 for size in shape)
            rest = [size or 2 for size in rest]
        steps[i] = replace(steps[i], dim=dim, size=rest.pop(dim))
    call = draw(calls("in place" if draw(st.integers(0, 9)) == 9 else "function"))
    program = draw(inputs(call, shape, steps=tuple(steps)))
    program = _before(draw, program)
    return _seeded(draw, program, vmaps)


def _functorch_steps(draw: Draw, length: int) -> tuple[list[Step], bool]:
    """The steps, and whether the results have more elements than x (Jacobians, batches)."""
    steps: list[Step] = []
    order, numbers = 0, False
    for _ in range(length):
        if draw(st.booleans()):
            chunk = draw(st.sampled_from([None, None, 1, 2]))
            steps.append(Vmap(out_dim=draw(st.sampled_from([0, 0, -1])), chunk=chunk))
            continue
        kinds = [how for how in FUNCTORCH if order == 0 or how not in HESSIANS]
        if length > 1:  # there linearize is wrong for the reference too
            kinds.remove("linearize")
        if numbers:
            kinds = [how for how in kinds if how in ("grad", "vjp", "jvp")]
        if order == 2:
            continue
        how = draw(st.sampled_from(kinds))
        order += 2 if how in HESSIANS else 1
        numbers |= how in (*HESSIANS, *JACOBIANS, *BATCHED)
        chunk = draw(st.sampled_from([None, 1, 2])) if how == "jacrev" else None
        steps.append(Derivative(how, draw(st.integers(0, 7)), draw(st.sampled_from("CF0S")), chunk))
    return steps or [Vmap()], numbers


def _seeded(draw: Draw, program: Program, vmaps: list[int]) -> Program:
    """Draw the seeds: one for each example, or None if `randomness` then has a clear meaning."""
    steps, call = list(program.steps), program.call
    simple = ("grad", "vjp")
    draws = call.seed is None and len(vmaps) < 2 and steps_have_dims(steps)
    draws &= all(step.name() in simple for i, step in enumerate(steps) if i not in vmaps)
    if call.seed is None and not draws:
        call = replace(call, seed=3)
    for i in vmaps:
        choices = ["different", "same"] if draws else ["error", "different", "same"]
        steps[i] = replace(steps[i], randomness=draw(st.sampled_from(choices)))
    over_seed = not draws and bool(vmaps) and draw(st.integers(0, 3)) > 0
    length = 1
    for i in reversed(vmaps):
        if steps[i].dim is None or over_seed and draw(st.booleans()):
            length += 1
            steps[i] = replace(steps[i], seed_dim=draw(st.integers(0, length - 1)))
        if steps[i].dim is None:
            # Without dropout the result is not batched here. For such a result and a negative
            # out_dims, torch.vmap returns a tensor with arbitrary sizes.
            steps[i] = replace(steps[i], out_dim=0)
    return replace(program, call=call, steps=tuple(steps))


def steps_have_dims(steps: list[Step]) -> bool:
    return all(step.dim is not None for step in steps if isinstance(step, Vmap))


@st.composite
def tracing_programs(draw: Draw, backends: tuple[str, ...] = ()) -> Program:
    """Programs traced at one size and run at another, with derivatives inside and outside."""
    tracer = draw(_tracers(backends))
    is_inductor = backends == ("inductor",)
    outer: list[Step] = []
    if draw(st.booleans()):
        kinds = ["autograd.grad", "backward", *(["compiled autograd"] if backends else [])]
        derivative = _autograd(draw, tuple(kinds if tracer.backend != "aot_eager" else kinds[:2]))
        outer = [replace(derivative, create_graph=False)]
    inner: list[Step] = []
    if tracer.how in ("compile", "make_fx", "aot_function") and draw(st.booleans()):
        inner = _traced_steps(draw, tracer, bool(outer))
    elif outer and backends and not is_inductor and draw(st.booleans()):
        outer += draw(st.sampled_from([_hooks(draw), (Wrapper("checkpoint"),)]))
    vmaps = [i for i, step in enumerate(inner) if isinstance(step, Vmap)]
    shape = draw(shapes(1 + len(vmaps), 3, sizes=(3, 4, 5) if tracer.dynamic else (2, 3, 1, 4)))
    for i in vmaps:
        dim = draw(st.integers(0, len(shape) - 1))
        inner[i] = replace(inner[i], dim=dim, size=shape[dim])
    form = "function" if inner or not backends else draw(st.sampled_from(FORMS))
    call = draw(calls(form))
    if form == "module":
        call = replace(call, seed=None)
    program = draw(inputs(call, shape, steps=(*outer, tracer, *inner)))
    program = _before(draw, program)
    if is_inductor and program.layout.kind in ("negated", "imag of conj"):
        # Inductor ignores that an input is lazily negated: even its x * 2 has the wrong sign.
        program = replace(program, layout=replace(program.layout, kind="dense"))
    if is_inductor and form == "module":
        program = replace(program, call=replace(program.call, p=0.0))
    elif call.seed is None and (inner or is_inductor or tracer.how == "jit.trace"):
        program = replace(program, call=replace(program.call, seed=4))
    return replace(program, traced_shape=_traced_shape(draw, program, tracer))


FORMS = ("function", "function", "function", "module", "in place")


@st.composite
def _tracers(draw: Draw, backends: tuple[str, ...]) -> Tracer:
    if backends:
        dynamic = draw(st.sampled_from([None, True, False]))
        return Tracer("compile", draw(st.sampled_from(backends)), dynamic)
    hows = ["make_fx", "make_fx, pre_dispatch", "aot_function", "jit.trace", "export"]
    how = draw(st.sampled_from(hows))
    backend = draw(st.sampled_from(["eager", "strict"])) if how == "export" else "eager"
    return Tracer(how, backend, draw(st.booleans()))


def _traced_steps(draw: Draw, tracer: Tracer, is_differentiated: bool) -> list[Step]:
    """A derivative of torch.func inside of the trace, perhaps with a vmap around it or in it."""
    kinds = ["grad", "vjp", "jvp", *(() if is_differentiated else (*HESSIANS[:1], *JACOBIANS[:2]))]
    if is_differentiated and (tracer.backend != "eager" or tracer.how == "aot_function"):
        kinds = kinds[:2]
    if tracer.backend == "inductor":
        # No forward mode: with inductor PyTorch's own functions fail in it, because a tensor and
        # its tangent have different strides when a view is taken. They leave forward mode broken.
        kinds = kinds[:2]
    steps: list[Step] = [Derivative(draw(st.sampled_from(kinds)), draw(st.integers(0, 7)))]
    if draw(st.booleans()):
        steps.insert(draw(st.integers(0, 1)), Vmap())
    return steps


def _traced_shape(draw: Draw, program: Program, tracer: Tracer) -> Shape | None:
    """Another size to trace with, if one trace may serve both sizes."""
    makes_graph_of_sizes = program.vmaps or any(
        step.name() in (*HESSIANS, *JACOBIANS) for step in program.steps
    )
    if tracer.how == "compile":
        if makes_graph_of_sizes or not draw(st.booleans()):
            return None
    elif not tracer.dynamic or makes_graph_of_sizes:
        return None
    return tuple(size + 2 if size > 1 else size for size in program.shape)


FAMILIES: dict[str, st.SearchStrategy[Program]] = {
    "layout": layout_programs(),
    "layers": layer_programs(),
    "autograd": autograd_programs(),
    "functorch": functorch_programs(),
    "tracing": tracing_programs(),
    "compile": tracing_programs(("eager", "aot_eager")),
    "inductor": tracing_programs(("inductor",)),
}
assert set(BEFORE) >= set(LAYERS)
