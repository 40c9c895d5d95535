"""The operator in pure PyTorch: read this to learn what `act_reg` computes.

Every kernel is judged by this file, so it shares nothing with them: no compiled code, only public
torch functions. It is also what runs where there is no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check, resolve, rng_state
from .torch_activations import ACTIVATIONS as ACTIVATIONS  # a public name of this module

if TYPE_CHECKING:
    from typing_extensions import Self

# reduction -> what the sums are divided by, if it is not 0
COUNTS: dict[str, Callable[[Tensor], int]] = {
    "sum": lambda x: 1,
    "mean": Tensor.numel,
    "batch": lambda x: math.prod(x.shape[:1]),  # of no dimensions at all the product is 1
    "token": lambda x: math.prod(x.shape[:-1]),
}


class _Fields(NamedTuple):
    output: Tensor
    penalty: Tensor


class ActRegOutput(_Fields):
    """What `act_reg` returns: the tensor to go on with, and the penalty to add to the loss.

    A named tuple that, as those of torch.return_types, can also be made from one iterable, which is
    what subclasses of Tensor do with the results of a function.

    Attributes:
        output: y, of the shape and dtype of the input.
        penalty: a 0-d tensor, float32 (float64 for float64 input), already reduced by D.
    """

    __slots__ = ()

    def __new__(cls, output: Tensor | Iterable[Tensor], penalty: Tensor | None = None) -> Self:
        """Make the tuple from the two tensors, or from an iterable of them."""
        return tuple.__new__(cls, output if penalty is None else (output, penalty))


def act_reg(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    p: float = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    **activation_parameters: float | str,
) -> ActRegOutput:
    """Compute y = where(keep, act(x) * s, 0) and (l1 * sum|t| + l2 * sum t^2) / D, plainly.

    The same arguments, the same results and the same mask, bit for bit, as
    `actreg_ext.functional.act_reg`, which documents them; differentiable to any order.

    Example:
        >>> x = torch.tensor([-1.0, 2.0, 3.0])
        >>> output, penalty = act_reg(x, "relu", l1=0.5, reduction="sum")
        >>> output, penalty
        (tensor([0., 2., 3.]), tensor(2.5000))
    """
    name, parameters = resolve(activation, activation_parameters)
    l1, l2, p = check(input, l1, l2, p, training, penalty_on, reduction, seed)
    if not training:
        p = 0.0
    return composite(input, name, parameters, l1, l2, p, penalty_on, reduction, seed)


def composite(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    l1: float,
    l2: float,
    p: float,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
) -> ActRegOutput:
    """Compute `act_reg` from checked arguments."""
    size = denominator(x, reduction)
    order = memory_order(x)
    if not order:
        x = x.contiguous()
    function, _ = ACTIVATIONS[activation]
    a = function(x, *parameters)
    y = a
    if p > 0:
        state = draw(x.device) if seed is None else rng_state(seed, x)
        kept = kept_of_65536(p)
        keep = in_order(random16(state[0], state[1], x.numel()) < kept, x.shape, order)
        # A select, never a product: 0 * inf would be NaN. The scale is that of the integer
        # threshold, not of p, so that the expected y is exactly a.
        y = torch.where(keep, a * (65536 / max(kept, 1)), 0.0)
    t = a if penalty_on == "activation" else y
    t = t if t.dtype == torch.float64 else t.float()  # the sums of a half type would overflow
    penalty = t.flatten()[:0].sum()  # 0, and in the graph whatever the coefficients
    if l1:  # a coefficient of 0 is off: 0 * inf would be NaN
        penalty = penalty + l1 * t.abs().sum() / size
    if l2:
        penalty = penalty + l2 * t.square().sum() / size
    return ActRegOutput(y, penalty)


def denominator(x: Tensor, reduction: str) -> int:
    """Return D, what the sums are divided by; at least 1, so an empty tensor has penalty 0."""
    size: int = torch.sym_max(COUNTS[reduction](x), 1)  # type: ignore[no-untyped-call]
    return size


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Return the order in which positions are counted: dimensions from outermost to innermost.

    It is the order of the strides if the elements fill one block of memory; else, and where sizes
    are not known yet, it is the row-major order, which is written as the empty tuple.
    """
    sizes, strides = x.shape, x.stride()
    surely: Callable[[Any], bool] = bool
    if torch.compiler.is_compiling() or any(
        isinstance(n, torch.SymInt) for n in (*sizes, *strides)
    ):
        # Here, because importing it takes a second.
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
    for dim in range(x.dim()):  # sorts by insertion
        at = len(order)
        while at > 0 and surely(strides[dim] > strides[order[at - 1]]):
            at -= 1
        order.insert(at, dim)
    return tuple(order) if is_dense(order) else ()


def in_order(values: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """Return a tensor of `shape` whose elements in that order are `values`, which has one dim."""
    if not order:
        return values.view(shape)
    inverse = [order.index(dim) for dim in range(len(order))]
    return values.view([shape[dim] for dim in order]).permute(inverse)


def draw(device: torch.device) -> Tensor:
    """Draw {seed, offset 0} from the default generator of `device`.

    The CPU's kernels draw the same; those of CUDA take the generator's own seed and offset instead.
    """
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    return F.pad(seed, (0, 1))


def kept_of_65536(p: float) -> int:
    """Return T: an element is kept when its 16 random bits are below T."""
    return round((1 - p) * 65536)


def random16(seed: Tensor, offset: Tensor, n: int) -> Tensor:
    """Return r(0), ..., r(n - 1): 16 bits for each position in memory, as int64 of shape [n].

    One Philox block serves 8 positions: its four words are cut in halves, the low half first.
    """
    blocks = torch.arange((n + 7) // 8, device=seed.device)
    words = philox(seed, offset, blocks)
    return torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten()[:n]


def philox(seed: int | Tensor, offset: int | Tensor, block: Tensor) -> Tensor:
    """Return philox4x32-10(counter = {block, offset}, key = seed): four 32-bit words each.

    Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011). The three arguments are
    64-bit patterns (a negative int64 stands for the unsigned number of the same bits).

    Args:
        seed: the key {low 32 bits, high 32 bits}.
        offset: words 2 and 3 of the counter.
        block: int64 of any shape: words 0 and 1 of the counter.

    Returns:
        int64 of shape (*block.shape, 4), each element a word in [0, 2^32).

    Example:
        >>> [f"{word:08x}" for word in philox(0, 0, torch.tensor(0)).tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    low = 0xFFFFFFFF
    zero = torch.zeros_like(block)
    c0, c1 = block & low, block >> 32 & low
    c2, c3 = zero + (offset & low), zero + (offset >> 32 & low)
    k0, k1 = seed & low, seed >> 32 & low
    for _ in range(10):
        # 32 x 32 -> 64 bits: a product above 2^63 wraps, which leaves its 64 bits what they are.
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (right >> 32 & low) ^ c1 ^ k0,
            right & low,
            (left >> 32 & low) ^ c3 ^ k1,
            left & low,
        )
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return torch.stack((c0, c1, c2, c3), dim=-1)
