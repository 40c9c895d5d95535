"""`python -m actreg_ext demo`: train a small network with and without regularization.

The same multilayer perceptron learns scikit-learn's handwritten digits three times for each seed:
without regularization, with L1, L2 and dropout in plain PyTorch, and with `ActReg`. One table and
one figure compare the results. The demo checks its two claims itself: `ActReg` reaches the accuracy
of the plain code, and both overfit less than the network without regularization.

`experiment.Setting` was chosen to make overfitting visible in a short time, with round numbers: 512
of the 1797 images for training, two hidden layers of 512 units, three times Adam's default learning
rate. Early stopping uses only the validation images. Half or twice the units, l1 and l2 from 0.1 to
1, and p from 0.3 to 0.5 lead to the same conclusions.

Only `figure` imports matplotlib, `report` rich, `experiment` scikit-learn and `training` ignite.
`main` imports these modules late, so that it can name a missing package.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

__all__ = ["main"]

EXTRAS = {
    "ignite": "pytorch-ignite",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "sklearn": "scikit-learn",
}
FIGURE_FORMATS = (".pdf", ".png", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table and whether the claims hold, and write the figure.

    Args:
        argv: the command line after `demo`; None takes it from `sys.argv`.

    Returns:
        0 if both claims hold; 1 if one does not, or if a package that the demo needs is missing.
    """
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except ModuleNotFoundError as error:
        package = EXTRAS.get((error.name or "").split(".")[0])
        if package is None:
            raise
        print(f'The demo needs {package}: pip install "actreg_ext[demo]"', file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from .experiment import VARIANTS, Setting
    from .figure import draw
    from .report import Report, console, progress_bar
    from .timing import step_times
    from .training import one_thread, train

    # --quick keeps the number of seeds: the claims are about the spread over the seeds, and two or
    # three seeds say little about spread.
    setting = Setting(units=256) if options.quick else Setting()
    seeds = range(options.seeds)
    console.print(
        f"Learning handwritten digits from {setting.train_images} images.", highlight=False
    )
    console.print(setting.describe(len(seeds)), highlight=False)
    started = time.perf_counter()
    runs = []
    with progress_bar(total=len(seeds) * len(VARIANTS) + 1) as step:
        with one_thread():
            for seed, variant in product(seeds, VARIANTS):
                label = f"seed {seed + 1} of {len(seeds)}, {variant.name}"
                runs.append(train(variant, seed, setting, options.device, partial(step, label)))
                step(label, None)
        # The steps are timed with all threads again, as users train.
        times = step_times(setting, options.device, 20 if options.quick else 40, step)
    report = Report(runs, times)
    report.print()
    draw(report, setting, options.figure)
    console.print(f"Figure: {options.figure}", highlight=False, soft_wrap=True)
    console.print(f"Took {time.perf_counter() - started:.0f} s.", highlight=False)
    return 0 if report.holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actreg_ext demo",
        description="Train on handwritten digits without regularization, with L1, L2 and dropout "
        "in plain PyTorch, and with ActReg; compare accuracy, overfitting and time.",
    )
    parser.add_argument(
        "--seeds", type=_seeds, default=5, metavar="N", help="at least 2 (default: %(default)s)"
    )
    parser.add_argument("--device", type=_device, default="cpu", help="device (default: cpu)")
    parser.add_argument(
        "--figure",
        type=_figure,
        default="actreg_demo.png",
        metavar="FILE",
        help="where the figure goes, .png, .pdf or .svg (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="half the units, fewer timed steps")
    return parser


def _seeds(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: a spread needs an integer of at least 2")
    return int(text)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {reason}") from None
    return device


def _figure(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix not in FIGURE_FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(FIGURE_FORMATS)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    return path
