"""The Hoyer measure and its square as penalties. penalties.py exports them."""

from __future__ import annotations

from torch import Tensor

from . import arguments
from .reference import ActSums, quotient
from .sum_penalty import SumPenalty, root, rows


class Hoyer(SumPenalty):
    r"""The Hoyer measure: the ratio of the L1 norm to the L2 norm.

    The penalty is one of::

        coefficient * (sum_c S1[c]) / sqrt(sum_c S2[c])          per_channel=False
        coefficient * sum_c (S1[c] / sqrt(S2[c]))                per_channel=True

    The measure of n elements is 1 if only one element is not 0, and sqrt(n) if all elements have
    the same size. The measure stays the same if all elements are multiplied by one number. So the
    penalty pushes small elements to 0 and does not shrink all elements alike. The measure of zeros
    is defined as 0, with gradient 0.

    Shapes: sums of shape [C], or 0-d with per_channel=False; the penalty is 0-d.

    Args:
        coefficient: factor of the penalty; a number, finite and at least 0, or a 0-d tensor.
        per_channel: False measures all elements together. True adds the measures of the channels,
            each over the rows: then each channel should fire in few rows.
        normalize: True divides by the largest possible measure, sqrt(W), and with per_channel
            sqrt(W / C). Then the measure is in [0, 1], does not depend on the number of rows, and
            does not change if all row weights are multiplied by one number. With False and row
            weights other than 0 and 1 the measure depends on the size of the weights.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: coefficient is out of range; with per_channel, the sums were computed without
            channel_dim.

    References:
        Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 5, 2004.
        Yang, Wen and Li, "DeepHoyer: learning sparser neural network with differentiable
        scale-invariant sparsity measures", ICLR 2020, arXiv:1908.09979.

    Example:
        >>> import torch
        >>> from actreg_ext.reference import act_sums
        >>> sums = act_sums(torch.tensor([3.0, 4.0, 0.0]), "relu")
        >>> Hoyer(1.0)(sums)  # (3 + 4) / 5
        tensor(1.4000)
    """

    def __init__(
        self, coefficient: float | Tensor, per_channel: bool = False, normalize: bool = False
    ) -> None:
        super().__init__(coefficient)
        self.per_channel = arguments.flag("per_channel", per_channel)
        self.normalize = arguments.flag("normalize", normalize)

    def measure(self, sums: ActSums) -> Tensor:
        """Return the measure of all elements, or the sum of the measures of the channels."""
        if self.per_channel:
            l1, l2, size = sums.l1, sums.l2, rows(sums)
        else:
            l1, l2, size = sums.l1.sum(), sums.l2.sum(), sums.weight
        measured = self.of(l1, l2)
        return (quotient(measured, self.largest(size)) if self.normalize else measured).sum()

    def of(self, l1: Tensor, l2: Tensor) -> Tensor:
        """Return the measure of elements from their sums."""
        return quotient(l1, root(l2))

    def largest(self, size: Tensor) -> Tensor:
        """Return the largest measure that this number of elements can have."""
        return size.sqrt()

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        options = f"per_channel={self.per_channel}, normalize={self.normalize}"
        return f"{super().extra_repr()}, {options}"


class HoyerSquared(Hoyer):
    r"""The square of the Hoyer measure, a differentiable stand-in for the number of nonzeros.

    The penalty is one of::

        coefficient * (sum_c S1[c])^2 / sum_c S2[c]              per_channel=False
        coefficient * sum_c (S1[c]^2 / S2[c])                    per_channel=True

    The measure of n elements is k if k of them have the same size and the others are 0, so it is
    at most n. Its gradient is 2 * sign(t) * h * (1 - h * |t|) with h = S1 / S2: elements with
    |t| < S2 / S1 are pushed to 0, larger elements grow. The measure of zeros is defined as 0, with
    gradient 0.

    Shapes and errors are those of `Hoyer`.

    Args:
        coefficient: factor of the penalty; a number, finite and at least 0, or a 0-d tensor.
        per_channel: as in `Hoyer`.
        normalize: True divides by the largest possible measure, W, and with per_channel W / C. Then
            the measure is in [0, 1], such as a share of active elements.

    References:
        Yang, Wen and Li, "DeepHoyer", ICLR 2020, arXiv:1908.09979, where the measure is called
        Hoyer-Square.

    Example:
        >>> import torch
        >>> from actreg_ext.reference import act_sums
        >>> sums = act_sums(torch.tensor([[2.0, 2.0], [2.0, 0.0]]), "relu", channel_dim=1)
        >>> HoyerSquared(1.0)(sums), HoyerSquared(1.0, normalize=True)(sums)
        (tensor(3.), tensor(0.7500))
    """

    def of(self, l1: Tensor, l2: Tensor) -> Tensor:
        """Return the measure of elements from their sums."""
        return l1 * quotient(l1, l2)  # this order overflows later than l1 * l1 / l2

    def largest(self, size: Tensor) -> Tensor:
        """Return the largest measure that this number of elements can have."""
        return size
