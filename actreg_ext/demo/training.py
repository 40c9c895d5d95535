"""One training with ignite: it stops early by validation loss and restores the best weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.handlers import Checkpoint, EarlyStopping
from ignite.metrics import Accuracy, Loss
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from .experiment import Digits, Learner, Part, Setting, Variant, split_digits


@dataclass(frozen=True)
class Run:
    """The results of one training of one variant; accuracies and shares are in percent."""

    variant: str
    validation_losses: list[float]  # after each epoch
    train_accuracy: float  # this and the values below: with the restored weights
    test_accuracy: float
    train_loss: float
    test_loss: float
    activity: Tensor  # [hidden units]: the share of test images on which a unit is not 0

    @property
    def epochs(self) -> int:
        """Epochs until the training was stopped."""
        return len(self.validation_losses)

    @property
    def accuracy_gap(self) -> float:
        """Train accuracy minus test accuracy, in percentage points."""
        return self.train_accuracy - self.test_accuracy

    @property
    def loss_gap(self) -> float:
        """Test loss minus train loss (cross-entropy)."""
        return self.test_loss - self.train_loss

    @property
    def inactive(self) -> float:
        """The share of hidden activations that are 0 on the test images."""
        return 100 - self.activity.mean().item()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that the results do not depend on the number of cores.

    The matrix products are too small to gain from more threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    variant: Variant,
    seed: int,
    setting: Setting,
    device: torch.device,
    on_epoch: Callable[[int], None],
) -> Run:
    """Train until the validation loss has not improved for `setting.patience` epochs.

    Args:
        variant: how the network is regularized.
        seed: seed of the split, the initial weights, the batches and the dropout.
        setting: the numbers of the experiment.
        device: the device to train on.
        on_epoch: called after each epoch with its number.
    """
    digits = split_digits(seed, setting, device)
    learner = Learner(variant, seed, setting, device)
    validation_losses = _fit(learner, digits, seed, setting, on_epoch)
    evaluator = _evaluator(learner.model)
    on_train = _evaluate(evaluator, digits.train)
    on_test = _evaluate(evaluator, digits.test)
    return Run(
        variant=variant.name,
        validation_losses=validation_losses,
        train_accuracy=100 * on_train["accuracy"],
        test_accuracy=100 * on_test["accuracy"],
        train_loss=on_train["loss"],
        test_loss=on_test["loss"],
        activity=_activity(learner, digits.test.x),
    )


def _fit(
    learner: Learner,
    digits: Digits,
    seed: int,
    setting: Setting,
    on_epoch: Callable[[int], None],
) -> list[float]:
    """Train, restore the best weights, and return the validation losses."""
    trainer = Engine(lambda _, batch: learner.step(*batch))
    evaluator = _evaluator(learner.model)
    losses: list[float] = []

    def validate() -> None:
        losses.append(_evaluate(evaluator, digits.validation)["loss"])
        on_epoch(trainer.state.epoch)

    def score(engine: Engine) -> float:
        return -float(engine.state.metrics["loss"])

    best: dict[str, Tensor] = {}

    def keep(weights: Mapping[str, Tensor], _: str) -> None:
        best.update(copy.deepcopy(dict(weights)))  # in memory: ignite's DiskSaver writes files

    stop = EarlyStopping(setting.patience, score, trainer)
    stop.logger.setLevel("WARNING")  # its messages would break the progress bar
    checkpoint = Checkpoint({"model": learner.model}, keep, score_function=score)
    evaluator.add_event_handler(Events.COMPLETED, stop)
    evaluator.add_event_handler(Events.COMPLETED, checkpoint)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    trainer.run(_batches(digits.train, seed, setting), max_epochs=setting.max_epochs)
    learner.model.load_state_dict(best)
    return losses


def _batches(part: Part, seed: int, setting: Setting) -> DataLoader[tuple[Tensor, ...]]:
    # A separate generator shuffles. Dropout draws from the default generator, and the variants draw
    # different amounts, but all of them must see the same batches. batch_size=None: the sampler
    # already yields whole batches.
    dataset = TensorDataset(*part)
    generator = torch.Generator().manual_seed(seed)
    order = RandomSampler(dataset, generator=generator)
    sampler = BatchSampler(order, setting.batch, drop_last=False)
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=generator)


def _evaluator(model: nn.Module) -> Engine:
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    return create_supervised_evaluator(model, metrics)


def _evaluate(evaluator: Engine, part: Part) -> dict[str, float]:
    return dict(evaluator.run([part]).metrics)


@torch.no_grad()
def _activity(learner: Learner, x: Tensor) -> Tensor:
    """The percentage of images for which a unit is not 0, for all hidden units of both layers."""
    shares: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor], a: Tensor) -> None:
        shares.append(100 * (a != 0).float().mean(0))

    handles = [module.register_forward_hook(record) for module in learner.regularizers]
    learner.model.eval()(x)
    for handle in handles:
        handle.remove()
    return torch.cat(shares).cpu()
