"""The faults that mutate.py plants: each in one line that the source has exactly once."""

from __future__ import annotations

from typing import NamedTuple

KERNELS = ("csrc/cpu/default.cpp",)


class Mutation(NamedTuple):
    fault: str
    file: str
    old: str  # occurs once in the file
    new: str
    tests: str  # arguments of pytest
    compiles: tuple[str, ...] = ()


MUTATIONS = [
    Mutation(
        "slope 1 % too large",
        "csrc/core/operator.h",
        "return zero_wins(a.slope, select(keep",
        "return zero_wins(a.slope * T(1.01), select(keep",
        "tests/test_autograd.py::test_gradcheck",
        KERNELS,
    ),
    Mutation(
        "gradient of |t| without the sign",
        "csrc/core/operator.h",
        "times_sign(c.c1, a.value)",
        "c.c1",
        "tests/test_autograd.py::test_gradcheck",
        KERNELS,
    ),
    Mutation(
        "keep inverted",
        "csrc/cpu/storage.h",
        "bits.r < static_cast",
        "bits.r >= static_cast",
        "tests/test_dropout.py",
        KERNELS,
    ),
    Mutation(
        "last element of the tail not stored",
        "csrc/cpu/storage.h",
        "__builtin_memcpy(to, padded, first.count * sizeof(E))",
        "__builtin_memcpy(to, padded, (first.count - 1) * sizeof(E))",
        "tests/test_layouts.py",
        KERNELS,
    ),
    Mutation(
        "relu of NaN is 0",
        "csrc/core/activations.h",
        "{select(x < T(0), T(0), x), select(x <= T(0), T(0), T(1))}",
        "{select(x > T(0), x, T(0)), select(x <= T(0), T(0), T(1))}",
        "tests/test_specials.py::test_answers_are_torchs",
        KERNELS,
    ),
    Mutation(
        "9 rounds of Philox",
        "csrc/core/philox.h",
        "round < 10",
        "round < 9",
        "tests/test_dropout.py",
        KERNELS,
    ),
    Mutation(
        "derivative of a quotient with the wrong sign",
        "csrc/core/dual.h",
        "a.derivative - quotient * b.derivative",
        "a.derivative + quotient * b.derivative",
        "tests/test_autograd.py::test_double_backward",
        ("csrc/cpu/curvature.cpp",),
    ),
    Mutation(
        "scale 1 / (1 - p) instead of 65536 / T",
        "csrc/core/philox.h",
        "double{kKeepAll} / threshold",
        "1 / (1 - p)",
        "tests/test_dropout.py",
        ("csrc/torch/operators.cpp",),
    ),
    Mutation(
        "offset + 1",
        "csrc/torch/cpu.cpp",
        "static_cast<uint64_t>(state[1])",
        "static_cast<uint64_t>(state[1]) + 1",
        "tests/test_dropout.py",
        ("csrc/torch/cpu.cpp",),
    ),
    Mutation(
        "seed from the wrong word",
        "csrc/torch/cpu.cpp",
        "static_cast<uint64_t>(state[0])",
        "static_cast<uint64_t>(state[1])",
        "tests/test_dropout.py",
        ("csrc/torch/cpu.cpp",),
    ),
    Mutation(
        "the first partial sum skipped",
        "csrc/torch/cpu.cpp",
        "for (const auto& sums : partial) total.l1 += sums.l1",
        "for (const auto& sums : partial) if (&sums != &partial[0]) total.l1 += sums.l1",
        "tests/test_penalty.py",
        ("csrc/torch/cpu.cpp",),
    ),
    Mutation(
        "l2 with one half",
        "csrc/torch/operators.cpp",
        "s * s * sums.l2",
        "s * s * sums.l2 / 2",
        "tests/test_penalty.py",
        ("csrc/torch/operators.cpp",),
    ),
    Mutation(
        "dropped elements count in the penalty on the output",
        "csrc/torch/operators.cpp",
        "if (attributes.on_output) problem.counted",
        "if (false) problem.counted",
        "tests/test_penalty.py",
        ("csrc/torch/operators.cpp",),
    ),
    Mutation(
        "gradient of the penalty on the output without s",
        "csrc/torch/operators.cpp",
        "scaled({dl1_sum, dl2_sum}, problem);",
        "PenaltySums<double>{dl1_sum, dl2_sum};",
        "tests/test_autograd.py::test_gradcheck",
        ("csrc/torch/operators.cpp",),
    ),
    Mutation(
        "a recomputed forward counts again",
        "actreg_ext/nn.py",
        "elif in_backward:",
        "elif False:",
        "tests/test_checkpoint.py::test_eager",
    ),
    Mutation(
        "collecting does not clear",
        "actreg_ext/nn.py",
        "penalty, self.penalty = self.penalty, None",
        "penalty = self.penalty",
        "tests/test_module.py",
    ),
    Mutation(
        "the batch as denominator of a token's penalty",
        "actreg_ext/reference.py",
        '"token": lambda x: x.shape[:-1]',
        '"token": lambda x: x.shape[:1]',
        "tests/test_penalty.py",
    ),
    Mutation(
        "any l1 and l2 accepted",
        "actreg_ext/arguments.py",
        "if not 0.0 <= number < math.inf:",
        "if False:",
        "tests/test_arguments.py",
    ),
    Mutation(
        "vmap: a new mask for each example also with randomness='same'",
        "actreg_ext/ops.py",
        'if info.randomness == "different":',
        'if info.randomness != "error":',
        "tests/test_autograd.py::TestVmapRandomness",
    ),
    Mutation(
        "compiled calls have one mask",
        "actreg_ext/functional.py",
        "state = draw(x.device) if seed is None",
        "state = rng_state(0, x.device) if seed is None",
        "tests/test_compile.py -k 'masks and aot_eager'",
    ),
]
