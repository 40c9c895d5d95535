"""Finds the units that have not fired for some time. penalties.py exports it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import arguments, errors
from .reference import ActSums
from .sum_penalty import check_sums, rows

UNITS = ("step", "row")


class DeadUnits(nn.Module):
    r"""Counts, for each channel, the steps or the rows since the channel last fired.

    A channel fires if one of its elements is not 0 in a row with a weight other than 0. Each update
    computes, with n = 1 for unit="step" and the number of rows for unit="row"::

        since_fired[c] = 0 if N[c] > 0 else since_fired[c] + n

    The counts are a buffer, so the state_dict has them. An update never waits for the device, and
    can be compiled.

    In data-parallel training, all-reduce the counts N first, so that all processes agree.

    Args:
        num_channels: C, the number of channels; at least 1.
        unit: "step": since_fired counts updates; "row": it counts rows, such as tokens.

    Attributes:
        since_fired: int64 of shape [C].

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    References:
        SAELens, sae_lens/training/sae_trainer.py, where the count of steps is called
        `n_forward_passes_since_fired` and the threshold `dead_feature_window`.

    Example:
        >>> from actreg_ext.reference import act_sums
        >>> units = DeadUnits(2)
        >>> for _ in range(3):
        ...     units.update(act_sums(torch.tensor([[1.0, -1.0]]), "relu", channel_dim=1))
        >>> units.since_fired, units.dead(2)
        (tensor([0, 3]), tensor([False,  True]))
    """

    since_fired: Tensor

    def __init__(self, num_channels: int, unit: str = "step") -> None:
        super().__init__()
        if isinstance(num_channels, bool) or not isinstance(num_channels, int):
            raise TypeError(f"num_channels must be an int, but got {errors.shown(num_channels)}")
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, but got {num_channels}")
        self.unit = arguments.choice("unit", unit, UNITS)
        self.register_buffer("since_fired", torch.zeros(num_channels, dtype=torch.int64))

    @torch.no_grad()
    def update(self, sums: ActSums | Tensor, count_rows: int | Tensor | None = None) -> None:
        """Count one step, or its rows.

        Args:
            sums: what `act_sums` returned, or a tensor of shape [C]: the count N.
            count_rows: the number of rows, for unit="row" only. None takes W / C of the sums, which
                is right if all row weights are 0 or 1.
        """
        if isinstance(sums, Tensor):
            count = sums
            if self.unit == "row" and count_rows is None:
                raise ValueError('DeadUnits: with unit="row" and a count, pass count_rows too')
        else:
            check_sums("DeadUnits", sums, True)
            count = sums.count
            if self.unit == "row" and count_rows is None:
                count_rows = rows(sums).round().long()
        self._check_shape("count", count)
        passed = 1 if self.unit == "step" or count_rows is None else count_rows
        self.since_fired.copy_(torch.where(count > 0, 0, self.since_fired + passed))

    def dead(self, threshold: int) -> Tensor:
        """Return a bool mask of shape [C]: True where since_fired is above the threshold."""
        return self.since_fired > threshold

    @torch.no_grad()
    def reset(self, mask: Tensor | None = None) -> None:
        """Set since_fired to 0: where the bool mask is True, or everywhere.

        Call it after the dead units got new weights.
        """
        if mask is None:
            self.since_fired.zero_()
            return
        self._check_shape("mask", mask)
        self.since_fired.masked_fill_(mask, 0)

    def _check_shape(self, argument: str, value: Tensor) -> None:
        if value.shape != self.since_fired.shape:
            raise ValueError(
                f"DeadUnits: {argument} must have shape {list(self.since_fired.shape)}, "
                f"but has shape {list(value.shape)}"
            )

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return f"{self.since_fired.numel()}, unit={self.unit}"
