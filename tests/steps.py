"""The steps of a random program. A step turns a function of x into another function of x.

For example, the step Vmap turns f into torch.vmap(f). A function takes x, and sometimes a seed
tensor, and returns a tuple of tensors. Each step has two methods. `ours` applies the step as a user
of PyTorch would. `plain` computes the same with Python loops over the examples and with
torch.autograd.grad, and with no other feature of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from functorch.compile import aot_function, nop
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

Results = tuple[Tensor, ...]
Function = Callable[..., Results]


class Context(Protocol):
    """The methods of a program that its steps may call."""

    def example(self, requires_grad: bool) -> tuple[Tensor, ...]:
        """The arguments to trace with; they have another size if the program says so."""

    def reseed(self) -> None:
        """Reset the default generator to its state at the start of the program."""


def pattern(like: Tensor, key: int, lowest: float, order: str = "C") -> Tensor:
    """A tensor like `like` of numbers lowest + k / 8, k = 0...7, which are exact in every dtype.

    order: the memory layout: "C" row-major, "F" column-major, "S" every second element of a larger
    tensor, "0" one number with strides 0.
    """
    shape = list(like.shape)
    if order == "0":
        number = torch.full((), lowest + key % 8 / 8, dtype=like.dtype, device=like.device)
        return number.expand(shape)
    numbers = torch.arange(like.numel(), device=like.device)
    numbers = (((numbers * 5 + key) % 8) / 8 + lowest).to(like.dtype)
    if order == "F":
        return numbers.reshape(shape[::-1]).permute(tuple(range(len(shape)))[::-1])
    if order == "S":
        return torch.stack([numbers, numbers], -1)[..., 0].reshape(shape)
    return numbers.reshape(shape)


def directions(like: Tensor, key: int, order: str = "C") -> Tensor:
    """Positive and negative numbers, none of them 0."""
    return pattern(like, key, -0.4375, order).detach()


@dataclass(frozen=True)
class Step:
    """One step of a program."""

    def ours(self, f: Function, context: Context) -> Function:
        raise NotImplementedError

    def plain(self, f: Function) -> Function:
        return f

    def name(self) -> str:
        return type(self).__name__.lower()

    def traces(self) -> bool:
        return isinstance(self, Tracer) or self.name() == "compiled autograd"


@dataclass(frozen=True)
class Vmap(Step):
    """torch.vmap over dimension `dim` of x and `seed_dim` of the seed; None: not batched."""

    dim: int | None = 0
    size: int = 2  # the number of examples
    out_dim: int = 0
    chunk: int | None = None
    randomness: str = "error"
    seed_dim: int | None = None

    def ours(self, f: Function, context: Context) -> Function:
        def g(x: Tensor, *seeds: Tensor) -> Results:
            in_dims = (self.dim, *[self.seed_dim for _ in seeds])
            options: dict[str, Any] = {"chunk_size": self.chunk, "randomness": self.randomness}
            return torch.vmap(f, in_dims, self.out_dim, **options)(x, *seeds)

        return g

    def plain(self, f: Function) -> Function:
        def g(x: Tensor, *seeds: Tensor) -> Results:
            results, state = [], torch.get_rng_state()
            for i in range(self.size):
                if self.randomness == "same":
                    torch.set_rng_state(state)
                each = [s if self.seed_dim is None else s.select(self.seed_dim, i) for s in seeds]
                x_i = x if self.dim is None else x.select(self.dim, i)
                results.append(f(x_i, *each))
            return tuple(torch.stack(t, self.out_dim) for t in zip(*results, strict=True))

        return g


@dataclass(frozen=True)
class Derivative(Step):
    """A derivative of f, followed by f's own results if PyTorch returns them too."""

    how: str = "grad"
    key: int = 0  # the seed of the weights or of the direction
    order: str = "C"  # the memory layout of these: see `pattern`
    chunk: int | None = None
    create_graph: bool = False

    def name(self) -> str:
        return self.how

    def is_functorch(self) -> bool:
        return self.how in FUNCTORCH

    def loss(self, results: Results) -> Tensor:
        """A smooth sum of all results: the derivative by each of them lies in [0.5, 3]."""
        total = torch.zeros((), dtype=torch.float64)
        for i, t in enumerate(results):
            t = t.double()
            weights = pattern(t, self.key + i, 1.0, self.order)
            total = total + (weights * (t + 0.5 * (1 + t * t).sqrt())).sum()
        return total

    def cotangents(self, results: Results) -> Results:
        return tuple(directions(t, self.key + i, self.order) for i, t in enumerate(results))

    def ours(self, f: Function, context: Context) -> Function:
        make = _OURS[self.how]
        return lambda x, *seeds: tuple(make(self, lambda x: f(x, *seeds), x))

    def plain(self, f: Function) -> Function:
        make = _PLAIN[self.how]
        return lambda x, *seeds: tuple(make(self, lambda x: f(x, *seeds), x))


Made = Callable[[Derivative, Function, Tensor], Any]


def _tracked(x: Tensor) -> Tensor:
    """x, or a copy of x that requires a gradient."""
    return x if x.requires_grad else x.detach().requires_grad_()


def _that_require_grad(results: Results, cotangents: Any) -> tuple[Any, Any]:
    """The results that require a gradient: not the constant penalty of a module without one."""
    pairs = zip(results, cotangents, strict=True)
    return tuple(zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True))


def _derivative(outputs: Any, x: Tensor, cotangents: Any = None) -> Tensor:
    """The gradient, itself differentiable; zeros if the outputs do not depend on x."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [None] * len(outputs) if cotangents is None else cotangents
    if not any(output.requires_grad for output in outputs):
        return torch.zeros_like(x)
    outputs, cotangents = _that_require_grad(outputs, cotangents)
    return torch.autograd.grad(
        outputs, x, cotangents, create_graph=True, allow_unused=True, materialize_grads=True
    )[0]


def _rows(result: Tensor, x: Tensor) -> Tensor:
    """The Jacobian of one result, row by row."""
    rows = [_derivative(element, x) for element in result.flatten()]
    return torch.stack(rows).reshape(result.shape + x.shape)


def _plain_grad(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    results = f(x)
    return _derivative(step.loss(results), x), *results


def _plain_vjp(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    results = f(x)
    return _derivative(results, x, step.cotangents(results)), *results


def _plain_jvp(step: Derivative, f: Function, x: Tensor) -> Results:
    """J v, computed as the derivative of (J^T u) v with respect to u."""
    x = _tracked(x)
    results, v, tangents = f(x), directions(x, step.key, step.order), []
    for result in results:
        u = torch.zeros_like(result, requires_grad=True)
        along = (_derivative(result, x, [u]) * v).sum()
        tangents.append(_derivative(along, u))
    return *results, *tangents


def _plain_jacobian(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    return tuple(_rows(result, x) for result in f(x))


def _plain_hessian(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    return (_rows(_derivative(step.loss(f(x)), x), x),)


BATCH = 3  # gradients in a batch


def _batches(step: Derivative, results: Results) -> list[Tensor]:
    return [
        torch.stack([directions(t, step.key + i + 10 * n, step.order) for n in range(BATCH)])
        for i, t in enumerate(results)
    ]


def _plain_batch(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    results = f(x)
    batches = _batches(step, results)
    rows = [_derivative(results, x, [b[n] for b in batches]) for n in range(BATCH)]
    return torch.stack(rows), *results


def _grad(step: Derivative, f: Function, x: Tensor) -> Results:
    def loss(x: Tensor) -> tuple[Tensor, Results]:
        results = f(x)
        return step.loss(results), results

    dx, results = torch.func.grad(loss, has_aux=True)(x)
    return dx, *results


def _vjp(step: Derivative, f: Function, x: Tensor) -> Results:
    results, pull = torch.func.vjp(f, x)
    return *pull(step.cotangents(results)), *results


def _vmapped_vjp(step: Derivative, f: Function, x: Tensor) -> Results:
    results, pull = torch.func.vjp(f, x)
    return *torch.vmap(pull)(tuple(_batches(step, results))), *results


def _jvp(step: Derivative, f: Function, x: Tensor) -> Results:
    results, tangents = torch.func.jvp(f, (x,), (directions(x, step.key, step.order),))
    return *results, *tangents


def _linearize(step: Derivative, f: Function, x: Tensor) -> Results:
    results, push = torch.func.linearize(f, x)
    return *results, *push(directions(x, step.key, step.order))


def _dual_numbers(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    with forward_ad.dual_level():
        results = f(forward_ad.make_dual(x, directions(x, step.key, step.order)))
        pairs = [forward_ad.unpack_dual(result) for result in results]
        tangents = [torch.zeros_like(p) if t is None else t for p, t in pairs]
        return *[p for p, _ in pairs], *tangents


def _autograd(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    results = f(x)
    loss = step.loss(results)
    return *torch.autograd.grad(loss, x, create_graph=step.create_graph), *results


def _twice(step: Derivative, f: Function, x: Tensor) -> Results:
    """Run the backward on a retained graph again, once for the output and once for the penalty."""
    x = _tracked(x)
    results = f(x)
    on, v = _that_require_grad(results, step.cotangents(results))
    torch.autograd.grad(on, x, v, retain_graph=True)
    parts = [
        torch.autograd.grad(t, x, c, retain_graph=True, create_graph=step.create_graph)[0]
        for t, c in zip(on, v, strict=True)
    ]
    return torch.stack(parts).sum(0), *results


def _backward(step: Derivative, f: Function, x: Tensor) -> Results:
    x = x.detach().requires_grad_()
    results = f(x)
    step.loss(results).backward()
    assert x.grad is not None
    return x.grad, *[t.detach() for t in results]


def _compiled_autograd(step: Derivative, f: Function, x: Tensor) -> Results:
    x = x.detach().requires_grad_()
    results = f(x)
    loss = step.loss(results)
    compiler = torch.compile(backend="eager", fullgraph=True, dynamic=step.key % 2 == 1)
    with compiled_autograd._enable(compiler):
        loss.backward()
    assert x.grad is not None
    return x.grad, *[t.detach() for t in results]


def _grads_batched(step: Derivative, f: Function, x: Tensor) -> Results:
    x = _tracked(x)
    results = f(x)
    on, v = _that_require_grad(results, _batches(step, results))
    options: dict[str, Any] = {"is_grads_batched": True, "create_graph": step.create_graph}
    return *torch.autograd.grad(on, x, v, **options), *results


def _jacobian(step: Derivative, f: Function, x: Tensor) -> Results:
    options: dict[str, Any] = {"create_graph": step.create_graph, "vectorize": step.key % 2 == 1}
    return torch.autograd.functional.jacobian(f, x, **options)


def _hessian(step: Derivative, f: Function, x: Tensor) -> Results:
    def loss(x: Tensor) -> Tensor:
        return step.loss(f(x))

    options: dict[str, Any] = {"create_graph": step.create_graph, "vectorize": step.key % 2 == 1}
    return (torch.autograd.functional.hessian(loss, x, **options),)


def _of_loss(transform: Callable[..., Any]) -> Made:
    return lambda step, f, x: (transform(lambda x: step.loss(f(x)))(x),)


GRADIENTS = ("autograd.grad", "backward", "compiled autograd")  # ways of torch.autograd
_OURS: dict[str, Made] = {
    "grad": _grad,
    "vjp": _vjp,
    "vmap of vjp": _vmapped_vjp,
    "jvp": _jvp,
    "linearize": _linearize,
    "jacrev": lambda step, f, x: torch.func.jacrev(f, chunk_size=step.chunk)(x),
    "jacfwd": lambda step, f, x: torch.func.jacfwd(f)(x),
    "hessian": _of_loss(torch.func.hessian),
    "jacrev of jacrev": _of_loss(lambda f: torch.func.jacrev(torch.func.jacrev(f))),
    "jacfwd of jacfwd": _of_loss(lambda f: torch.func.jacfwd(torch.func.jacfwd(f))),
    "jacrev of jacfwd": _of_loss(lambda f: torch.func.jacrev(torch.func.jacfwd(f))),
    "dual numbers": _dual_numbers,
    "autograd.grad": _autograd,
    "twice": _twice,
    "backward": _backward,
    "compiled autograd": _compiled_autograd,
    "is_grads_batched": _grads_batched,
    "autograd.functional.jacobian": _jacobian,
    "autograd.functional.hessian": _hessian,
}
_PLAIN: dict[str, Made] = {
    **dict.fromkeys(("grad", *GRADIENTS), _plain_grad),
    **dict.fromkeys(("vjp", "twice"), _plain_vjp),
    **dict.fromkeys(("vmap of vjp", "is_grads_batched"), _plain_batch),
    **dict.fromkeys(("jvp", "linearize", "dual numbers"), _plain_jvp),
    **dict.fromkeys(("jacrev", "jacfwd", "autograd.functional.jacobian"), _plain_jacobian),
    **{
        how: _plain_hessian
        for how in _OURS
        if how not in ("jacrev", "jacfwd") and ("hessian" in how or how.startswith("jac"))
    },
}
HESSIANS = tuple(how for how, made in _PLAIN.items() if made is _plain_hessian)
JACOBIANS = tuple(how for how, made in _PLAIN.items() if made is _plain_jacobian)
BATCHED = ("vmap of vjp", "is_grads_batched")
FORWARD = ("jvp", "linearize", "jacfwd", "dual numbers", "hessian", "autograd.functional.hessian")
FORWARD += ("jacfwd of jacfwd", "jacrev of jacfwd", "autograd.functional.jacobian")
# The derivatives of torch.func; all others are those of torch.autograd.
FUNCTORCH = tuple(
    how
    for how in _OURS
    if how not in (*GRADIENTS, "dual numbers", "twice", "is_grads_batched")
    and not how.startswith("autograd")
)


def _column_major(t: Tensor) -> Tensor:
    dims = list(range(t.dim()))[::-1]
    return t.permute(dims).contiguous().permute(dims)


def _spread(t: Tensor) -> Tensor:
    """The same values in a tensor that is not dense: every second element of a larger one."""
    return torch.stack([t, t], -1)[..., 0]


_PACK: dict[str, Callable[[Tensor], Any]] = {
    "identity": lambda t: t,
    "contiguous": Tensor.contiguous,
    "column-major": _column_major,
    "spread": _spread,
    "numpy": lambda t: (
        (t.dtype, t.detach().to(torch.float64).numpy().copy()) if t.is_floating_point() else t
    ),
}


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, tuple):
        return torch.from_numpy(packed[1]).to(packed[0])
    return packed


@dataclass(frozen=True)
class Wrapper(Step):
    """A step that must not change the results, such as checkpoint, hooks or autocast."""

    how: str = "checkpoint"
    pack: str = "identity"

    def name(self) -> str:
        return self.how

    def ours(self, f: Function, context: Context) -> Function:
        if self.how.startswith("checkpoint"):
            reentrant = self.how == "checkpoint, reentrant"
            return lambda x, *seeds: checkpoint(f, x, *seeds, use_reentrant=reentrant)
        if self.how == "functionalize":
            return torch.func.functionalize(f)

        def g(x: Tensor, *seeds: Tensor) -> Results:
            with self.manager():
                return f(x, *seeds)

        return g

    def manager(self) -> Any:
        graph = torch.autograd.graph
        return {
            "hooks": lambda: graph.saved_tensors_hooks(_PACK[self.pack], _unpack),
            "save_on_cpu": graph.save_on_cpu,
            "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
            "no_grad": torch.no_grad,
            "inference_mode": torch.inference_mode,
            "multithreading off": lambda: torch.autograd.set_multithreading_enabled(False),
            "nothing": nullcontext,
        }[self.how]()


class _Module(nn.Module):
    """The function as a module, because torch.export accepts only modules."""

    def __init__(self, f: Function) -> None:
        super().__init__()
        self.f = f

    def forward(self, *arguments: Tensor) -> Results:
        return self.f(*arguments)


@dataclass(frozen=True)
class Tracer(Step):
    """Trace or compile the function with one size, and run it, perhaps with another size."""

    how: str = "compile"
    backend: str = "eager"
    dynamic: bool | None = None

    def name(self) -> str:
        return f"{self.how}, {self.backend}" if self.how == "compile" else self.how

    def ours(self, f: Function, context: Context) -> Function:
        def g(x: Tensor, *seeds: Tensor) -> Results:
            example = context.example(x.requires_grad)
            if self.how == "compile":
                traced = torch.compile(
                    f, backend=self.backend, dynamic=self.dynamic, fullgraph=True
                )
                traced(*example)
            elif self.how == "aot_function":
                traced = aot_function(f, nop, dynamic=bool(self.dynamic))
                traced(*example)
            elif self.how == "export":
                shapes = tuple(
                    {i: torch.export.Dim.AUTO for i, n in enumerate(t.shape) if n > 1}
                    for t in example
                )
                shapes = shapes if self.dynamic else None
                traced = torch.export.export(
                    _Module(f), example, dynamic_shapes=shapes, strict=self.backend == "strict"
                ).module()
            elif self.how == "jit.trace":
                traced = torch.jit.trace(f, example, check_trace=False)
            else:
                mode = "symbolic" if self.dynamic else "real"
                traced = make_fx(
                    f, tracing_mode=mode, pre_dispatch=self.how == "make_fx, pre_dispatch"
                )(*example)
            context.reseed()
            return tuple(traced(x, *seeds))

        return g
