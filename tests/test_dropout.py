"""The mask: which elements are kept, their scale, and what is drawn from the generator."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import actreg_ext
from actreg_ext import dropout_mask, reference
from actreg_ext.functional import act_reg
from tests import table

# Lengths around the sizes of vectors, blocks and chunks in the kernels.
LENGTHS = [1, 3, 4, 5, 7, 8, 9, 16, 1023, 1024, 1025, 4095, 4097, 16383, 16384, 16385, 2**20 + 3]
SEEDS = [
    0,
    -1,
    2**32,
    2**63,
    2**64 - 1,
    torch.tensor([0, 1]),
    torch.tensor([5, 2**32]),
    torch.tensor([-(2**63), -1]),
]
# The published answers of philox4x32-7 (kat_vectors of Random123): counter, key, words.
KNOWN_ANSWERS = [
    (
        [0x00000000, 0x00000000, 0x00000000, 0x00000000],
        [0x00000000, 0x00000000],
        [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48],
    ),
    (
        [0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF],
        [0xFFFFFFFF, 0xFFFFFFFF],
        [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
    ),
]


def int64(low: int, high: int) -> int:
    """Two 32-bit words as one int64 with the same bits."""
    bits = high << 32 | low
    return bits - 2**64 if bits >= 2**63 else bits


def reference_mask(n: int, p: float, seed: int | Tensor, device: str = "cpu") -> Tensor:
    ones = torch.ones(n, dtype=torch.float64, device=device)
    return reference.act_reg(ones, "identity", p=p, seed=seed).output != 0


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_reference_gives_the_published_words(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    seed, block, offset = int64(*key), int64(*counter[:2]), int64(*counter[2:])
    assert reference.philox(seed, offset, torch.tensor(block)).tolist() == words


def test_mask_is_the_words_of_the_reference(device: str) -> None:
    """Element i is kept exactly when half i % 2 of word i / 2 is below T.

    The second word of the counter has its top bit set: then no counter is one of PyTorch's, which
    are {offset / 4, thread} with offset / 4 below 2^62.
    """
    words = reference.philox(0, 0, torch.tensor(-(2**63))).tolist()
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    for i, half in enumerate(halves):
        for threshold, kept in ((half, False), (half + 1, True)):
            mask = dropout_mask(8, p=1 - threshold / 65536, seed=0, device=device)
            assert mask[i] == kept, (i, threshold)


@pytest.mark.parametrize(
    ("seed", "p", "golden"),
    [
        (0, 0.5, "11001000 10011010 00011000 00000000 01100101"),
        (1, 0.5, "10011001 01100010 11010110 00000101 01100000"),
        (-1, 0.3, "00111010 11011111 01111111 11111100 11011001"),
        (torch.tensor([2**40 + 7, 3]), 0.1, "01111111 11111111 11111111 01111101 11101110"),
        (torch.tensor([-(2**63), -(2**35)]), 0.5, "10000100 11001111 01011110 10101100 00001011"),
    ],
)
def test_golden_mask(device: str, seed: int | Tensor, p: float, golden: str) -> None:
    """The mask of a seed is the same on every machine, and in all releases with mask version 2.

    The literals come from another implementation of Philox, which passes the known answers above.
    """
    mask = dropout_mask(40, p, seed, device)
    rows = ["".join(map(str, row)) for row in mask.int().view(5, 8).tolist()]
    assert " ".join(rows) == golden


@pytest.mark.parametrize("n", LENGTHS)
def test_mask_is_the_references(device: str, n: int) -> None:
    for p, seed in itertools.product((0.1, 0.5), SEEDS[:1] if n > 2**17 else SEEDS):
        mask = dropout_mask(n, p, seed, device)
        assert torch.equal(mask, reference_mask(n, p, seed, device)), (p, seed)


def test_seeds_are_64_bits(device: str) -> None:
    """A negative seed equals the unsigned seed with the same 64 bits."""
    for unsigned, signed in ((2**64 - 1, -1), (2**63, -(2**63)), (2**63 + 5, 5 - 2**63)):
        tensor = torch.tensor([signed, 0])
        masks = [dropout_mask(4096, 0.5, seed, device) for seed in (unsigned, signed, tensor)]
        assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_every_seed_and_offset_counts(device: str) -> None:
    """Each bit of seed and offset counts: changing one bit changes the mask."""
    bits = [int64(1 << i & 0xFFFFFFFF, 1 << i >> 32) for i in range(64)]
    seeds = [torch.tensor([bit, 0]) for bit in bits] + [torch.tensor([0, bit]) for bit in bits]
    masks = {tuple(dropout_mask(64, 0.5, seed, device).tolist()) for seed in seeds}
    assert len(masks) == len(seeds)


@pytest.mark.parametrize("training", [True, False])
def test_act_reg_uses_the_mask(
    activation: dict[str, Any], dtype: torch.dtype, device: str, training: bool
) -> None:
    """dropout_mask is the mask of act_reg, forward and backward, for every dtype."""
    x = torch.full((5000,), 0.75, dtype=dtype, device=device, requires_grad=True)
    mask = dropout_mask(5000, 0.3, 11, device) if training else torch.ones_like(x, dtype=torch.bool)
    output = act_reg(x, **activation, p=0.3, seed=11, training=training).output
    assert torch.equal(output != 0, mask)
    (dx,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(dx != 0, mask & (dx[mask][0] != 0))
    assert len(output[mask].unique()) == 1


def test_threads_do_not_matter(threads: None) -> None:
    masks = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        masks.append(dropout_mask(2**18 + 5, 0.5, 3))
    assert all(torch.equal(masks[0], mask) for mask in masks)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.channels_last_3d])
def test_position_is_the_place_in_memory(
    dtype: torch.dtype, device: str, layout: torch.memory_format
) -> None:
    shape = (2, 3, 5, 7, 4)[: 4 if layout is torch.channels_last else 5]
    x = torch.ones(shape, dtype=dtype, device=device).to(memory_format=layout)
    in_memory = dropout_mask((shape[0], *shape[2:], shape[1]), 0.5, 9, device)
    assert torch.equal(act_reg(x, "identity", p=0.5, seed=9).output != 0, in_memory.movedim(-1, 1))


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.3, 0.5, 0.9, 1 - 2**-14])
def test_rate_and_scale(device: str, p: float) -> None:
    """T of 65536 values keep an element, and the scale is 65536 / T, so E[y] = a."""
    n, kept_values = 2**20, round((1 - p) * 65536)
    x = torch.ones(n, dtype=torch.float64, device=device)
    output = act_reg(x, "identity", p=p, seed=2).output
    assert output.unique().tolist() == [0.0, 65536 / kept_values]
    rate = kept_values / 65536
    deviation = (output.count_nonzero().item() - n * rate) / (n * rate * (1 - rate)) ** 0.5
    assert abs(deviation) < 4


def test_p_too_small_to_drop_anything(device: str) -> None:
    x = table.random_inputs(torch.float32, device)
    assert torch.equal(act_reg(x, "identity", p=2**-18, seed=1).output, x)
    assert dropout_mask(2**18, 2**-18, 1, device).all()


def test_p_of_one(activation: dict[str, Any], device: str) -> None:
    """p = 1 drops every element; the penalty on the activation does not change."""
    x = table.random_inputs(torch.float32, device, wide=False)
    output, penalty = act_reg(x, **activation, p=1.0, l1=1.0, l2=1.0)
    assert torch.equal(output, torch.zeros_like(x))
    assert penalty == act_reg(x, **activation, l1=1.0, l2=1.0).penalty != 0


def generator_state(device: str) -> Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)


@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.0},
        {"p": 0.5, "training": False},
        {"p": 0.5, "seed": 1},
        {"p": 0.5, "seed": SEEDS[5]},
    ],
    ids=table.describe,
)
def test_nothing_is_drawn_without_need(device: str, options: dict[str, Any]) -> None:
    before = generator_state(device)
    x = torch.ones(100, device=device, requires_grad=True)
    act_reg(x, **options, l1=1.0).output.sum().backward()
    assert torch.equal(generator_state(device), before)


@pytest.mark.parametrize("p", [1e-9, 0.3, 1.0])
def test_seed_none_draws_as_the_reference(dtype: torch.dtype, p: float) -> None:
    """On the CPU only: test_cuda.py tests the draws on a GPU."""
    x = torch.ones(1000, dtype=dtype)
    outputs, states = [], []
    for function in (act_reg, reference.act_reg):
        torch.manual_seed(123)
        outputs += [function(x, "identity", p=p).output for _ in range(3)]
        states.append(generator_state("cpu"))
    assert all(map(torch.equal, outputs[:3], outputs[3:]))
    assert torch.equal(*states)


def test_seed_none_is_one_draw_of_64_bits() -> None:
    """On the CPU the seed is what torch.randint(-2**63, 2**63 - 1, ()) returns, the offset 0."""
    mask = dropout_mask(1000, 0.5, None)
    torch.manual_seed(0)
    seed = torch.randint(-(2**63), 2**63 - 1, ()).item()
    assert torch.equal(mask, dropout_mask(1000, 0.5, seed))


def test_calls_differ(device: str) -> None:
    masks = torch.stack([dropout_mask(1000, 0.5, None, device) for _ in range(50)])
    assert len(masks.unique(dim=0)) == 50


def test_fork_rng_gives_the_mask_again(device: str) -> None:
    x = torch.ones(1000, device=device)
    with torch.random.fork_rng():
        inside = act_reg(x, p=0.5).output
    assert torch.equal(act_reg(x, p=0.5).output, inside)


def independence(a: Tensor, b: Tensor) -> float:
    """Pearson's chi-square statistic, of 3 degrees of freedom, for two masks of p = 0.5."""
    counts = torch.bincount((2 * a.flatten() + b.flatten()).long(), minlength=4).double()
    return ((counts - counts.mean()).square() / counts.mean()).sum().item()


@pytest.mark.parametrize("distance", [1, 2, 7, 8, 64, 1024, 16384])
def test_elements_are_independent(device: str, distance: int) -> None:
    mask = dropout_mask(2**18, 0.5, 77, device)
    assert independence(mask[:-distance], mask[distance:]) < 20  # chance of more: 0.0002


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((5, 0), (6, 0)),
        ((5, 0), (5, 1)),
        ((5, 0), (5 + 2**32, 0)),
        ((5, 0), (0, 5)),
        ((0, 0), (-1, 0)),
    ],
)
def test_seeds_are_independent(
    device: str, first: tuple[int, int], second: tuple[int, int]
) -> None:
    masks = [dropout_mask(2**18, 0.5, torch.tensor(state), device) for state in (first, second)]
    assert independence(*masks) < 20


def test_shapes(device: str) -> None:
    assert dropout_mask((), 0.5, 0, device).shape == ()
    assert dropout_mask(6, 0.5, 0, device).shape == (6,)
    assert dropout_mask((0, 3), 0.5, 0, device).shape == (0, 3)
    flat, shaped = (dropout_mask(shape, 0.5, 0, device) for shape in (24, (2, 3, 4)))
    assert torch.equal(flat, shaped.flatten())
    assert shaped.dtype == torch.bool and shaped.device.type == device
    assert actreg_ext.dropout_mask is dropout_mask
