"""Triton's seeded dropout, of its tutorial "Low-Memory Dropout", with a backward: a rival.

https://triton-lang.org/main/getting-started/tutorials/04-low-memory-dropout.html
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def kernel(x_pointer, y_pointer, n, p, seed, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_pointer + offsets, mask=inside)
    keep = tl.rand(seed, offsets) > p
    tl.store(y_pointer + offsets, tl.where(keep, x / (1 - p), 0.0), mask=inside)


def launch(x: Tensor, p: float, seed: int) -> Tensor:
    y = torch.empty_like(x)
    kernel[(triton.cdiv(x.numel(), BLOCK),)](x, y, x.numel(), p, seed, BLOCK=BLOCK)
    return y


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed = p, seed
        return launch(x, p, seed)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Any:
        return launch(dy[0].contiguous(), ctx.p, ctx.seed), None, None


def dropout(x: Tensor, p: float) -> Tensor:
    seed = int(torch.randint(2**31 - 1, ()))  # on the host, as the operator's generator is
    return Dropout.apply(x, p, seed)  # type: ignore[no-any-return,no-untyped-call]
