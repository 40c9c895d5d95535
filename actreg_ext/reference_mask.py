"""The dropout mask in plain PyTorch: which 16 random bits an element uses, and what they are.

docs/mask.md defines the mask. Like reference.py, this file shares nothing with the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import FLAT, Rows


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Return the order in which the positions of the mask are counted.

    The order lists the dimensions from the outermost to the innermost. The empty tuple stands for
    row-major order. If the elements of x fill one block of memory, the order is the one of the
    strides; for example, (0, 2, 3, 1) for channels_last. For any other x, and for an x whose sizes
    are not known while tracing, it is row-major.
    """
    sizes, strides = x.shape, x.stride()
    surely: Callable[[Any], bool] = bool
    if torch.compiler.is_compiling() or any(
        isinstance(n, torch.SymInt) for n in (*sizes, *strides)
    ):
        # Imported here, because this import takes a second.
        from torch.fx.experimental.symbolic_shapes import guard_or_false as surely

    def is_dense(order: Sequence[int]) -> bool:
        expected: Any = 1
        for dim in reversed(order):
            if not surely(sizes[dim] == 1):
                if not surely(strides[dim] == expected):
                    return False
                expected = expected * sizes[dim]
        return True

    if is_dense(range(x.dim())):
        return ()
    order: list[int] = []
    for dim in range(x.dim()):  # insertion sort by stride, the largest first
        at = len(order)
        while at > 0 and surely(strides[dim] > strides[order[at - 1]]):
            at -= 1
        order.insert(at, dim)
    return tuple(order) if is_dense(order) else ()


def random_bits(x: Tensor, state: Tensor, order: Sequence[int], rows: Rows = FLAT) -> Tensor:
    """Return r(position) of each element of x: the 16 random bits that the element uses.

    The position is the element's index in memory order. Shared dimensions are left out, so one
    position serves all elements along them. For a shard the index is the one in the whole tensor.

    Args:
        x: the input, of which only the shape is read.
        state: {seed, offset}.
        order: the memory order of x.
        rows: the shared dimensions and the shard.

    Returns:
        int64, of a shape that broadcasts to the shape of x, and in the memory order of x.
    """
    sizes = rows.global_shape or x.shape
    offsets = rows.offsets or (0,) * x.dim()
    dims = list(order) or list(range(x.dim()))
    position = torch.zeros((1,) * x.dim(), dtype=torch.int64, device=x.device)
    stride = 1
    for inner, dim in enumerate(reversed(dims)):
        if dim not in rows.shared_dims:
            index = torch.arange(x.shape[dim], device=x.device) + offsets[dim]
            position = position + (index * stride).view([-1] + [1] * inner)
            stride *= sizes[dim]
    bits = random16(state[0], state[1], position)
    return bits.permute([dims.index(dim) for dim in range(x.dim())])


def draw(device: torch.device) -> Tensor:
    """Draw a seed from the default generator of `device` and return the tensor {seed, 0}.

    The CPU kernels draw the same seed. The CUDA kernels do not: they use the generator's own seed
    and offset.
    """
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    return F.pad(seed, (0, 1))


def kept_of_65536(p: float | Tensor) -> Any:
    """Return T: an element is kept when its 16 random bits are below T."""
    if isinstance(p, Tensor):
        return ((1 - p.double()) * 65536).round().long()
    return round((1 - p) * 65536)


def random16(seed: Tensor, offset: Tensor, position: Tensor) -> Tensor:
    """Return r(position): 16 random bits for each position, as int64.

    One Philox block serves 8 positions: it has four 32-bit words, and each word gives its low half
    and then its high half.
    """
    words = philox(seed, offset, position // 8 | -(2**63))  # see philox.h: the bit of version 2
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(-2)
    return halves.gather(-1, (position % 8).unsqueeze(-1)).squeeze(-1)


def philox(seed: int | Tensor, offset: int | Tensor, block: Tensor) -> Tensor:
    """Return philox4x32-7(counter = {block, offset}, key = seed): four 32-bit words per block.

    Each argument is read as 64 bits: a negative int64 stands for the unsigned number with the same
    bits. The low 32 bits become the first word, the high 32 bits the second.

    Args:
        seed: the two words of the key.
        offset: words 2 and 3 of the counter.
        block: int64 of any shape: words 0 and 1 of the counter.

    Returns:
        int64 of shape (*block.shape, 4); each element is a word in [0, 2^32).

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Example:
        >>> [f"{word:08x}" for word in philox(0, 0, torch.tensor(0)).tolist()]
        ['5f6fb709', '0d893f64', '4f121f81', '4f730a48']
    """
    low = 0xFFFFFFFF
    zero = torch.zeros_like(block)
    c0, c1 = block & low, block >> 32 & low
    c2, c3 = zero + (offset & low), zero + (offset >> 32 & low)
    k0, k1 = seed & low, seed >> 32 & low
    for _ in range(7):
        # 32 x 32 -> 64 bits. A product above 2^63 becomes a negative int64 with the same 64 bits.
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (right >> 32 & low) ^ c1 ^ k0,
            right & low,
            (left >> 32 & low) ^ c3 ^ k1,
            left & low,
        )
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return torch.stack((c0, c1, c2, c3), dim=-1)
