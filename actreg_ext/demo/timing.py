"""The time of a training step of each variant, measured so that the variants can be compared.

The speed of a machine changes with its clock and with other processes. So the variants take turns
in one process, and they are compared within each round. Only medians are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .experiment import VARIANTS, Learner, Setting, split_digits

WARM_UP = 5  # rounds that are not counted: they allocate memory and the optimizer's state


def step_times(
    setting: Setting,
    device: torch.device,
    rounds: int,
    on_round: Callable[[str, int | None], None],
) -> dict[str, list[float]]:
    """Time whole training steps: forward, penalties, backward and update.

    Returns:
        Name of the variant -> seconds of each round. Equal indices belong to the same round.
    """
    part = split_digits(0, setting, device).train
    x, y = part.x[: setting.batch], part.y[: setting.batch]
    learners = [(variant.name, Learner(variant, 0, setting, device)) for variant in VARIANTS]
    times: dict[str, list[float]] = {name: [] for name, _ in learners}
    for i in range(WARM_UP + rounds):
        # Each round begins with another variant: no variant always comes first.
        turn = i % len(learners)
        for name, learner in learners[turn:] + learners[:turn]:
            _wait(device)
            started = time.perf_counter()
            learner.step(x, y)
            _wait(device)
            if i >= WARM_UP:
                times[name].append(time.perf_counter() - started)
        on_round("timing the step", i)
    on_round("timing the step", None)
    return times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
