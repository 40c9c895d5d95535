"""Where a provider's layer is timed: in a single call, in a block of a network, in a training step.

docs/benchmarks.md shows how to add a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch._functorch.config
from torch import Tensor, nn

from .cases import TRAINED, Case
from .providers import Layer, Provider
from .timing import Runs

WIDTH, HIDDEN, TOKENS, DEPTH = 512, 2048, 128, 8
CACHES = 4  # on a GPU the inputs take turns: together they have 4 times the bytes of its L2 cache


class Block(nn.Module):
    """A network around the layer: y, and the layer's penalty."""

    def __init__(self, place: str, layer: Layer) -> None:
        super().__init__()
        self.place, self.layer = place, layer
        self.norm = nn.LayerNorm(WIDTH) if place == "ffn" else nn.Identity()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Identity() if place == "sae" else nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, *penalty = self.layer(self.up(self.norm(x)))
        y = self.down(y)
        return (x + y if self.place == "ffn" else y, *penalty)


class Deep(nn.Module):
    """DEPTH linear layers, each with the layer behind it: y, and the sum of the penalties."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        penalties = []
        for linear in self.linears:
            x, *penalty = self.layer(linear(x))
            penalties += penalty
        return (x, torch.stack(penalties).sum()) if penalties else (x,)


@dataclass
class Subject:
    """What one provider does in one case."""

    function: Layer
    xs: list[Tensor]
    dy: Tensor
    outputs: int  # 2 with a penalty
    parameters: list[Tensor] = field(default_factory=list)
    is_copy: bool = False

    def call(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.function(x)[: self.outputs]

    def gradients(self, x: Tensor, outputs: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, ...]:
        ones = [torch.ones_like(penalty) for penalty in outputs[1:]]
        into = [x, *self.parameters]
        return torch.autograd.grad(outputs, into, [self.dy, *ones], retain_graph=keep)

    def runs(self, direction: str) -> Runs:
        """The call to be timed, once for each of the inputs that take turns."""
        if self.is_copy:
            return [self._copy(direction, x.detach()) for x in self.xs]
        if direction == "forward":
            return [partial(self.function, x) for x in self.xs]
        if direction == "backward":
            return [self._backward(x) for x in self.xs]
        if direction == "both":
            return [partial(self._both, x) for x in self.xs]
        optimizer = torch.optim.AdamW(self.parameters, lr=1e-6)
        return [partial(self._step, optimizer, x) for x in self.xs]

    def _copy(self, direction: str, x: Tensor) -> Callable[[], object]:
        if direction == "forward":
            return x.clone
        add = partial(torch.add, x, self.dy)
        return add if direction == "backward" else lambda: (x.clone(), add())

    def _backward(self, x: Tensor) -> Callable[[], object]:
        outputs = self.call(x)
        ones = [torch.ones_like(penalty) for penalty in outputs[1:]]
        into = [x, *self.parameters]
        return partial(torch.autograd.grad, outputs, into, [self.dy, *ones], retain_graph=True)

    def _both(self, x: Tensor) -> object:
        return self.gradients(x, self.call(x), keep=False)

    def _step(self, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
        y, *penalty = self.call(x)
        loss = y.float().square().mean()
        for term in penalty:
            loss = loss + term
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def inputs(case: Case, device: str) -> tuple[list[Tensor], Tensor]:
    """One x, on a GPU several, together larger than its caches; and a dy."""
    dtype = getattr(torch, case.dtype)
    shape: tuple[int, ...] = (case.elements,)
    out = shape
    if case.place != "call":
        rows = max(1, case.elements // (WIDTH if case.place == "deep" else HIDDEN))
        shape = (rows, WIDTH)
        if case.place == "ffn":
            shape = (math.ceil(rows / TOKENS), min(rows, TOKENS), WIDTH)
        out = (rows, HIDDEN) if case.place == "sae" else shape
    count = 1
    if device == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        count = max(2, math.ceil(CACHES * cache / (math.prod(shape) * dtype.itemsize)))
        count = min(count, 64)  # tiny tensors stay in the cache, however many they are
    torch.manual_seed(0)
    needs = case.place not in TRAINED
    xs = [torch.randn(shape, device=device).to(dtype) for _ in range(count)]
    return [x.requires_grad_(needs) for x in xs], torch.randn(out, device=device).to(dtype)


def subject(case: Case, provider: Provider, xs: list[Tensor], dy: Tensor) -> Subject:
    """The provider in its place. A provider that compiles compiles the network as a whole."""
    if provider.layer is None:
        return Subject(lambda x: (x,), xs, dy, 1, is_copy=True)
    outputs = 2 if case.penalty != "none" and provider.regularizes else 1
    function, parameters = provider.layer(case), list[Tensor]()
    if case.place != "call":
        block = block_of(case, function).to(dy.device, dy.dtype)
        function, parameters = block, list(block.parameters())
    if provider.mode is not None:
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False, fullgraph=True, **provider.mode)
    return Subject(function, xs, dy, outputs, parameters)


def block_of(case: Case, layer: Layer) -> Block | Deep:
    """The network around the layer, with the same weights for every provider."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if case.place == "deep":
            return Deep(layer)
        return Block("mlp" if case.place == "step" else case.place, layer)


def graphs_that_stay() -> AbstractContextManager[None]:
    """Lets the backward of compiled code run again: its timing needs that."""
    return torch._functorch.config.patch(donated_buffer=False)  # type: ignore[no-any-return]
