r"""Penalties that are formulas of the sums of `act_sums`, and what steers them.

`act_sums` returns, for each channel c, sums over the rows r with the row weights w::

    S1[c] = sum_r w_r * |t_rc|      S2[c] = sum_r w_r * t_rc^2      N[c] = number of t_rc != 0

and W, the sum of w over all elements. So W / C is the number of rows if there are no weights. A
penalty here costs a few operations on C numbers and reads the activation no second time. Each
penalty is a module: it takes the sums and returns a 0-d tensor, float32 (float64 for float64 sums),
which is differentiable to any order through S1 and S2. If all rows have weight 0, penalty and
gradient are 0.

`L1Controller` steers l1 towards a share of active units; `DeadUnits` finds units that never fire.
docs/penalties.md says which penalty to use when.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import arguments, errors
from .dead_units import DeadUnits
from .hoyer import Hoyer, HoyerSquared
from .l1_controller import L1Controller
from .reference import ActSums, quotient
from .sum_penalty import REDUCTIONS, SumPenalty, between, divided, register, root, rows

__all__ = [
    "DeadUnits",
    "GroupLasso",
    "Hoyer",
    "HoyerSquared",
    "KLTarget",
    "L1Controller",
    "LogPenalty",
    "WeightedL1",
]


class WeightedL1(SumPenalty):
    r"""An L1 penalty with one weight for each channel, such as the norms of a decoder.

    The penalty is::

        coefficient * sum_c weight_c * S1[c] / D

    With reduction="row" and the decoder's norms as weights, the penalty is the sparsity loss of a
    standard sparse autoencoder: the mean over tokens of sum_c |f_c| * ||W_dec[c]||.

    Shapes: sums of shape [C]; the penalty is 0-d. The gradient also reaches the weights if they
    require one.

    Args:
        coefficient: factor of the penalty; a number, finite and at least 0, or a 0-d tensor.
        weight: a tensor of shape [C], or a function without arguments that returns such a tensor in
            each call. If the norms change in training, pass a function. A method of a module can be
            pickled, a lambda cannot. A tensor becomes a buffer, an nn.Parameter a parameter. The
            values should be at least 0; they are not checked.
        reduction: the divisor D. "row": W / C, the number of rows; "mean": W, the number of
            elements; "sum": 1.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: coefficient or reduction is out of range; weight does not have shape [C], is on
            another device than the sums, or is the result of a computation that requires a
            gradient; the sums were computed without channel_dim.

    References:
        Conerly et al., "Update on how we train SAEs", transformer-circuits.pub, April 2024.
        SAELens, sae_lens/saes/standard_sae.py (`calculate_aux_loss` with lp_norm=1), where
        `coefficient` is called `l1_coefficient`.

    Example:
        >>> from actreg_ext.reference import act_sums
        >>> sums = act_sums(torch.tensor([[1.0, 2.0], [3.0, -4.0]]), "relu", channel_dim=1)
        >>> WeightedL1(0.5, torch.tensor([1.0, 10.0]))(sums)  # 0.5 * (1 * 4 + 10 * 2) / 2
        tensor(6.)
    """

    weight: Tensor | Callable[[], Tensor]

    def __init__(
        self,
        coefficient: float | Tensor,
        weight: Tensor | Callable[[], Tensor],
        reduction: str = "row",
    ) -> None:
        super().__init__(coefficient)
        self.reduction = arguments.choice("reduction", reduction, REDUCTIONS)
        if isinstance(weight, Tensor):
            _check_weight(weight, None)
            register(self, "weight", weight)
        elif callable(weight):
            # Not registered as a submodule: the decoder keeps one name in the state_dict.
            object.__setattr__(self, "weight", weight)
        else:
            raise TypeError(
                f"weight must be a tensor of shape [C] or a function that returns one, "
                f"but got {errors.shown(weight)}"
            )

    def measure(self, sums: ActSums) -> Tensor:
        """Return sum_c weight_c * S1[c] / D."""
        weight = self.weight if isinstance(self.weight, Tensor) else self.weight()
        _check_weight(weight, sums)
        return divided((weight.to(sums.l1.dtype) * sums.l1).sum(), sums, self.reduction)

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return f"{super().extra_repr()}, reduction={self.reduction}"


def _check_weight(weight: object, sums: ActSums | None) -> None:
    """Raise unless the weights have shape [C] and fit the sums."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"weight must be a floating-point tensor of shape [C], but got {errors.shown(weight)}"
        )
    if weight.dim() != 1 or (sums is not None and weight.shape != sums.l1.shape):
        shape = "[C]" if sums is None else f"{list(sums.l1.shape)}, one number for each channel"
        raise ValueError(f"weight must have shape {shape}, but has shape {list(weight.shape)}")
    if sums is not None and weight.device != sums.l1.device:
        raise ValueError(
            f"weight must be on the device of the sums {sums.l1.device}, but is on {weight.device}"
        )


class KLTarget(SumPenalty):
    r"""The KL divergence of a target rate from the mean activation of each channel.

    The penalty is::

        coefficient * sum_c [rate * log(rate / m_c) + (1 - rate) * log((1 - rate) / (1 - m_c))]
        m_c = clamp(S1[c] / (W / C), eps, 1 - eps)

    It is 0 if each channel's mean activation m_c equals the rate. The activations must be in
    [0, 1], such as those of sigmoid. Where the clamp changes m_c, the gradient is 0.

    Shapes: sums of shape [C]; the penalty is 0-d.

    Args:
        coefficient: factor of the penalty; a number, finite and at least 0, or a 0-d tensor.
        rate: rho, the target of the mean activation, in (0, 1); for example 0.05.
        eps: how close to 0 and to 1 a mean may come, in (0, 0.5).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the sums were computed without channel_dim.

    References:
        Ng, "Sparse autoencoder", lecture notes of CS294A, Stanford, 2011, section 3.

    Example:
        >>> from actreg_ext.reference import act_sums
        >>> sums = act_sums(torch.zeros(4, 2), "sigmoid", channel_dim=1)  # all means are 0.5
        >>> KLTarget(1.0, rate=0.5)(sums), KLTarget(1.0, rate=0.05)(sums)
        (tensor(0.), tensor(0.9893))
    """

    def __init__(self, coefficient: float | Tensor, rate: float, eps: float = 1e-6) -> None:
        super().__init__(coefficient)
        self.rate = between("rate", rate, 0.0, 1.0)
        self.eps = between("eps", eps, 0.0, 0.5)

    def measure(self, sums: ActSums) -> Tensor:
        """Return the divergence, added up over the channels."""
        size = rows(sums)
        mean = quotient(sums.l1, size).clamp(self.eps, 1 - self.eps)
        on = self.rate * (self.rate / mean).log()
        off = (1 - self.rate) * ((1 - self.rate) / (1 - mean)).log()
        return torch.where(size == 0, 0.0, (on + off).sum())

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return f"{super().extra_repr()}, rate={self.rate:g}, eps={self.eps:g}"


class GroupLasso(SumPenalty):
    r"""The group lasso, in which each channel is one group.

    The penalty, in which n = W / C is the number of rows and so the size of a group, is::

        coefficient * sum_c sqrt(n) * sqrt(S2[c]) / D

    With reduction="row", D is n, and the penalty is the sum of the channels' root mean squares. It
    pushes whole channels to 0: the size of its gradient with respect to a channel does not get
    smaller with the channel. At a channel of zeros the gradient is 0.

    Shapes: sums of shape [C]; the penalty is 0-d.

    Args:
        coefficient: factor of the penalty; a number, finite and at least 0, or a 0-d tensor.
        reduction: the divisor D. "row": W / C, the number of rows; "mean": W, the number of
            elements; "sum": 1, the equation of the papers.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the sums were computed without channel_dim.

    References:
        Yuan and Lin, "Model selection and estimation in regression with grouped variables", JRSS B
        68(1), 2006. Scardapane et al., "Group sparse regularization for deep neural networks",
        arXiv:1607.00485.

    Example:
        >>> from actreg_ext.reference import act_sums
        >>> sums = act_sums(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), "relu", channel_dim=1)
        >>> GroupLasso(1.0)(sums), GroupLasso(1.0, reduction="sum")(sums)
        (tensor(3.), tensor(6.))
    """

    def __init__(self, coefficient: float | Tensor, reduction: str = "row") -> None:
        super().__init__(coefficient)
        self.reduction = arguments.choice("reduction", reduction, REDUCTIONS)

    def measure(self, sums: ActSums) -> Tensor:
        """Return the sum of the groups' norms, each times the root of the group's size."""
        return divided(root(rows(sums) * sums.l2).sum(), sums, self.reduction)

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return f"{super().extra_repr()}, reduction={self.reduction}"


class LogPenalty(SumPenalty):
    r"""A concave penalty on the mean size of each channel: the log-sum penalty.

    The penalty is::

        coefficient * sum_c log(1 + m_c / eps),   m_c = S1[c] / (W / C)

    It acts on the means of the channels and not on the elements: within a channel it is an L1
    penalty with the factor coefficient / (m_c + eps). So channels that are weak already are pushed
    to 0, and strong channels are almost left alone. This factor is the weight of reweighted L1
    minimization, one reweighting in each step. Up to the constant C * log(eps), the papers write
    sum_c log(m_c + eps).

    Shapes: sums of shape [C]; the penalty is 0-d.

    Args:
        coefficient: factor of the penalty; a number, finite and at least 0, or a 0-d tensor.
        eps: the mean size at which the push on a channel is half of its push at 0; above 0. Choose
            it a little below the mean size of the channels that should stay.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the sums were computed without channel_dim.

    References:
        Candes, Wakin and Boyd, "Enhancing sparsity by reweighted l1 minimization", J. Fourier Anal.
        Appl. 14, 2008, arXiv:0711.1612, section 2.2.

    Example:
        >>> from actreg_ext.reference import act_sums
        >>> sums = act_sums(torch.tensor([[0.2, 0.0], [0.0, 0.0]]), "relu", channel_dim=1)
        >>> LogPenalty(1.0, eps=0.1)(sums)  # log(2): one channel has the mean 0.1
        tensor(0.6931)
    """

    def __init__(self, coefficient: float | Tensor, eps: float = 0.1) -> None:
        super().__init__(coefficient)
        self.eps = between("eps", eps, 0.0, math.inf)

    def measure(self, sums: ActSums) -> Tensor:
        """Return the logarithms, added up over the channels."""
        return (quotient(sums.l1, rows(sums)) / self.eps).log1p().sum()

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return f"{super().extra_repr()}, eps={self.eps:g}"
