"""The operator in plain PyTorch: read this file to learn what `act_reg` computes.

The tests compare every kernel with this file. So its arithmetic shares nothing with the kernels: it
uses public torch functions and no compiled code of ours. The package also runs this file on devices
that have no kernel. reference_mask.py has the dropout mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import resolve, rng_state
from .reference_mask import draw as draw
from .reference_mask import kept_of_65536 as kept_of_65536
from .reference_mask import memory_order as memory_order
from .reference_mask import philox as philox
from .reference_mask import random16 as random16
from .reference_mask import random_bits as random_bits
from .rows import FLAT, Rows, Shard, check_all
from .temporal_arguments import check_temporal
from .torch_activations import ACTIVATIONS as ACTIVATIONS  # a public name of this module

if TYPE_CHECKING:
    from typing_extensions import Self

# reduction -> D, the divisor of the sums (`denominator` replaces 0 by 1)
COUNTS: dict[str, Callable[[Tensor], int]] = {
    "sum": lambda x: 1,
    "mean": Tensor.numel,
    "batch": lambda x: math.prod(x.shape[:1]),  # 1 for a 0-d tensor: an empty product
    "token": lambda x: math.prod(x.shape[:-1]),
}
# Alpha dropout sets an element to selu's limit at -inf: -scale * alpha.
SELU_LIMIT = -1.7580993408473766


class _Fields(NamedTuple):
    output: Tensor
    penalty: Tensor


class ActRegOutput(_Fields):
    """What `act_reg` returns: the named tuple (output, penalty).

    Like the types in torch.return_types, the tuple can also be made from one iterable: subclasses
    of Tensor rebuild the results of a function that way.

    Attributes:
        output: y, of the shape and dtype of the input; the next layer's input.
        penalty: to be added to the loss: a 0-d tensor, float32 (float64 for a float64 input). The
            division by D is already done.
    """

    __slots__ = ()

    def __new__(cls, output: Tensor | Iterable[Tensor], penalty: Tensor | None = None) -> Self:
        """Make the tuple from two tensors, or from one iterable of two tensors."""
        return tuple.__new__(cls, output if penalty is None else (output, penalty))


class ActSums(NamedTuple):
    """What `act_sums` returns: the output and the sums over the rows, for each channel.

    Attributes:
        output: y, of the shape and dtype of the input.
        l1: S1, the sum of w * |t|, of shape [C]; float32 (float64 for a float64 input). Without
            channel_dim the sums are 0-d.
        l2: S2, the sum of w * t^2, of the same shape and dtype.
        count: N, the number of rows with w != 0 and t != 0, of the same shape, int64.
        weight: W, the sum of w over all elements of the input, 0-d, of the dtype of the sums.
            Without row_weight: the number of elements.
    """

    output: Tensor
    l1: Tensor
    l2: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    weight: Tensor


def act_reg(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    l1: float | Tensor = 0.0,
    l2: float | Tensor = 0.0,
    p: float | Tensor = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    keep: str = "auto",
    channel_dim: int | None = None,
    row_weight: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    dropout: str = "standard",
    shard: Shard | None = None,
    **activation_parameters: float | str,
) -> ActRegOutput:
    """Compute y = where(keep, act(x) * s, 0) and (l1 * sum|t| + l2 * sum t^2) / D.

    Takes the same arguments as `actreg_ext.functional.act_reg`, which documents them, and returns
    the same results up to rounding. For the same seed the masks agree bit for bit. This function is
    slower and keeps more memory, but is differentiable to any order.

    Example:
        >>> x = torch.tensor([-1.0, 2.0, 3.0])
        >>> output, penalty = act_reg(x, "relu", l1=0.5, reduction="sum")
        >>> output, penalty
        (tensor([0., 2., 3.]), tensor(2.5000))
    """
    name, parameters = resolve(activation, activation_parameters)
    options = (channel_dim, row_weight, shared_dims, dropout, shard)
    l1, l2, p, rows = check_all(
        input, l1, l2, p, training, penalty_on, reduction, seed, keep, options
    )
    if not training:
        p = 0.0
    return composite(input, name, parameters, l1, l2, p, penalty_on, reduction, seed, rows)


def act_sums(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    p: float | Tensor = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    seed: int | Tensor | None = None,
    keep: str = "auto",
    channel_dim: int | None = None,
    row_weight: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    dropout: str = "standard",
    shard: Shard | None = None,
    **activation_parameters: float | str,
) -> ActSums:
    """Compute y and the sums that penalties are made of, for each channel.

    Takes the same arguments as `actreg_ext.functional.act_sums`, which documents them.

    Example:
        >>> sums = act_sums(torch.tensor([[-1.0, 2.0], [3.0, 4.0]]), "relu", channel_dim=1)
        >>> sums.l1, sums.count
        (tensor([3., 6.]), tensor([1, 2]))
    """
    name, parameters = resolve(activation, activation_parameters)
    options = (channel_dim, row_weight, shared_dims, dropout, shard)
    _, _, p, rows = check_all(input, 0.0, 0.0, p, training, penalty_on, "sum", seed, keep, options)
    p = p if training else 0.0
    return composite_sums(input, name, parameters, p, penalty_on, seed, rows)


def composite(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    l1: float | Tensor,
    l2: float | Tensor,
    p: float | Tensor,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
    rows: Rows = FLAT,
) -> ActRegOutput:
    """Compute `act_reg` from arguments that are already checked."""
    sums = composite_sums(x, activation, parameters, p, penalty_on, seed, rows)
    return ActRegOutput(sums.output, penalty_of(x, sums, l1, l2, reduction, rows))


def penalty_of(
    x: Tensor,
    sums: ActSums,
    l1: float | Tensor,
    l2: float | Tensor,
    reduction: str,
    rows: Rows,
) -> Tensor:
    """Compute sum_c (l1_c * S1[c] + l2_c * S2[c]) / D."""
    total = sums.l1.flatten()[:0].sum()  # 0, but part of the autograd graph even if l1 = l2 = 0
    for coefficient, value in ((l1, sums.l1), (l2, sums.l2)):
        # A number 0 switches its penalty off: 0 * inf would be NaN. Tensors are not looked at.
        if isinstance(coefficient, Tensor) or coefficient:
            total = total + (coefficient * value).sum()
    if rows.row_weight is None or reduction in ("sum", "batch"):
        return (total / denominator(x, reduction)).to(sums.l1.dtype)
    size = sums.weight
    if reduction == "token":
        size = size / max(math.prod(x.shape[-1:]), 1)
    return quotient(total, size).to(sums.l1.dtype)  # without rows the penalty is 0


def quotient(total: Tensor, size: Tensor) -> Tensor:
    """Return total / size, and 0 with gradient 0 where size is 0."""
    is_empty = size == 0
    # The inner select keeps the gradient of the division finite; the outer one makes it 0.
    return torch.where(is_empty, 0.0, total / torch.where(is_empty, 1.0, size))


def composite_sums(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    p: float | Tensor,
    penalty_on: str,
    seed: int | Tensor | None,
    rows: Rows = FLAT,
) -> ActSums:
    """Compute `act_sums` from arguments that are already checked."""
    order = memory_order(x)
    if not order:
        x = x.contiguous()
    function, _ = ACTIVATIONS[activation]
    a = function(x, *parameters)
    y = a
    if isinstance(p, Tensor) or p > 0:
        state = draw(x.device) if seed is None else rng_state(seed, x)
        kept = kept_of_65536(p)
        keep = random_bits(x, state, order, rows) < kept
        y = _dropped(a, keep, kept, rows.alpha)
    # t has the type in which sums are computed: float16 sums would overflow.
    t = (a if penalty_on == "activation" else y).to(accumulation_dtype(a))
    w = torch.ones((), dtype=t.dtype, device=t.device)
    if rows.row_weight is not None:
        w = rows.row_weight.to(t.dtype)
    counts = w != 0  # rows of weight 0 are left out, even if t is infinite or NaN there

    def over_rows(values: Tensor) -> Tensor:
        if rows.channel_dim is None:
            return values.sum()
        return values.movedim(rows.channel_dim, 0).unsqueeze(-1).flatten(1).sum(1)

    return ActSums(
        y,
        over_rows(torch.where(counts, w * t.abs(), 0.0)),
        over_rows(torch.where(counts, w * t.square(), 0.0)),
        over_rows(counts & (t != 0)),
        w.expand(x.shape).sum(),
    )


def _dropped(a: Tensor, keep: Tensor, kept: Any, alpha: bool) -> Tensor:
    """Apply dropout. `kept` is T; the scale is computed from T, so the mean y is exactly a."""
    some = kept.clamp(min=1) if isinstance(kept, Tensor) else max(kept, 1)  # T = 0: y is 0
    q = some / 65536
    if not alpha:  # a select, not a product with a mask: 0 * inf would be NaN
        return torch.where(keep, a * (1 / q), 0.0)
    # Klambauer et al., "Self-Normalizing Neural Networks", arXiv:1706.02515: if the mean and the
    # variance of a are 0 and 1, those of y are 0 and 1 too.
    scale = (kept > 0) * (q * (1 + SELU_LIMIT**2 * (1 - q))) ** -0.5
    shift = -scale * SELU_LIMIT * (1 - q)
    return torch.where(keep, a * scale + shift, SELU_LIMIT * scale + shift)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of sums and of the penalty."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def denominator(x: Tensor, reduction: str) -> int:
    """Return D, the divisor of the sums. It is at least 1, so an empty tensor has penalty 0."""
    size: int = torch.sym_max(COUNTS[reduction](x), 1)  # type: ignore[no-untyped-call]
    return size


def temporal_penalty(
    h: Tensor, l2: float | Tensor, dim: int = 0, row_weight: Tensor | None = None
) -> Tensor:
    """Compute l2 * the weighted mean of (h[t + 1] - h[t])^2, with t along `dim`.

    Takes the same arguments as `actreg_ext.temporal_penalty`, which documents them.

    Example:
        >>> temporal_penalty(torch.tensor([1.0, 2.0, 4.0]), l2=2.0)
        tensor(5.)
    """
    l2, dim = check_temporal(h, l2, dim, row_weight)
    return composite_temporal_penalty(h, l2, dim, row_weight)


def composite_temporal_penalty(
    h: Tensor, l2: float | Tensor, dim: int, row_weight: Tensor | None
) -> Tensor:
    """Compute `temporal_penalty` from arguments that are already checked."""
    if not isinstance(l2, Tensor) and l2 == 0:  # left out: 0 * inf would be NaN
        return h.narrow(dim, 0, 0).sum(dtype=accumulation_dtype(h))  # 0, but part of the graph
    difference = h.to(accumulation_dtype(h)).diff(dim=dim)
    if row_weight is None:
        return scaled_mean(difference.square().sum(), None, h, l2, dim, row_weight)
    w = row_weight.to(difference).expand(full_time(row_weight, h, dim)).movedim(dim, 0)
    pairs = (w[:-1] * w[1:]).movedim(0, dim)
    # A select: pairs * difference would be NaN for a weight of 0 and a difference of infinity.
    difference = torch.where(pairs != 0, difference, 0.0)
    total = (pairs * difference.square()).sum()
    return scaled_mean(total, pairs.sum(), h, l2, dim, row_weight)


def full_time(row_weight: Tensor, h: Tensor, dim: int) -> list[int]:
    """Return the shape of row_weight with the dimensions of h and with all time steps."""
    shape = [1] * (h.dim() - row_weight.dim()) + list(row_weight.shape)
    shape[dim] = h.shape[dim]
    return shape


def scaled_mean(
    total: Tensor,
    weights: Tensor | None,
    h: Tensor,
    l2: float | Tensor,
    dim: int,
    row_weight: Tensor | None,
) -> Tensor:
    """Return l2 * total / D, or 0 if D is 0. D is the sum of the weights of all pairs.

    `weights` is that sum without the copies that broadcasting row_weight makes.
    """
    l2 = l2.to(total) if isinstance(l2, Tensor) else l2
    if weights is None or row_weight is None:
        others = [n for i, n in enumerate(h.shape) if i != dim]
        pairs: int = torch.sym_max(math.prod(others) * (h.shape[dim] - 1), 1)  # type: ignore[no-untyped-call]
        return l2 * total / pairs
    shape = full_time(row_weight, h, dim)
    size = weights * math.prod([n for i, n in enumerate(h.shape) if shape[i] == 1])
    return l2 * quotient(total, size)
