"""Fit the polynomials of the vectorised elementary functions: writes csrc/core/coefficients.h.

    .venv/bin/python tools/fit_polynomials.py && make format    # needs numpy and mpmath

The kernels compute exp, expm1, log1p and the normal tail without branches and look-up tables:

    expm1    m(r) = r + r^2 P(r),           r = (x - k hi) - k lo,   |r| <= ln2/2
    log1p    u - s (u - z L(z)),            s = u / (2 + u), z = s^2, 0 <= u <= 1
    tail     Q(z) = exp(-z^2/2) N(z)/D(z),  0 <= z <= 14.5 (float) or 39 (double)

and results of 11 bits from exp2 and 1/x, which are instructions of a GPU:

    exp2     E(r),                          -1/2 <= r <= 1/2
    expm1    x + x^2 P(x),                  -1/2 <= x <= 0
    log1p    u L(u),                        0 <= u <= 1
    tail     exp(-z^2/2) t T(t),            t = 1 / (1 + p z), 0 <= z <= 14.5

The last fit weighs an error by what a result of 11 bits shows of it: an eighth where z Q(z) is no
normal number of float16, and 1000 times at z = 0.7518, where Q(z) = -z Q'(z): gelu's slope at -z is
their difference, 0, so that any error is all of it.

Each fit minimises the greatest relative error by Lawson's reweighted least squares. The tail's fit
does so for N - D tail = 0, with the last D in the weights. Coefficients are rounded one by one, the
lowest degree first; after each the remaining ones are fitted again. Tables have the highest degree
first, for Horner's rule. The unit of the errors is 2^-24 (float) or 2^-53 (double).
"""

import contextlib
import io
from pathlib import Path

import numpy as np
from mpmath import mp, mpf

mp.dps = 110
BITS = {"float": 24, "double": 53}
LIMIT = {"float": mpf("14.5"), "double": mpf(39)}  # a little beyond kTailIsZero of math.h
DEGREES = {"float": (5, 4, 4), "double": (10, 9, 9)}  # of P, L and N; D has one more than N
SHORT = (5, 2, 4, 3)  # of E, P, L and T
SHORT_P = 0.292  # the best multiple of 0.002
KEPT = {"float": 16, "double": 42}  # bits of ln2's high part: k times it is exact
HALF = mpf(1) / 2
HEADER = Path(__file__).resolve().parents[1] / "csrc" / "core" / "coefficients.h"
root = np.frompyfunc(mp.sqrt, 1, 1)


def rounded(value, kind):
    """The nearest number of the format (normal numbers only)."""
    unit = mpf(2) ** (mp.floor(mp.log(abs(value), 2)) + 1 - BITS[kind])
    return mp.nint(value / unit) * unit


def grid(low, high, points=240):
    """Chebyshev points of [low, high]."""
    steps = np.array([mp.cos(mp.pi * i / (points - 1)) for i in range(points)])
    return (low + high) / 2 - (high - low) / 2 * steps


def powers(xs, degree, start=0):
    """The columns x^start ... x^degree."""
    return np.array([xs**i for i in range(start, degree + 1)])


def solve(columns, target, weights, known=()):
    """Weighted least squares; the first coefficients are known."""
    count = len(known)
    target = weights * (target - np.array(known, dtype=object) @ columns[:count])
    columns = weights * columns[count:]
    gram = mp.matrix([[mp.fdot(a, b) for b in columns] for a in columns])
    answer = mp.lu_solve(gram, mp.matrix([mp.fdot(a, target) for a in columns]))
    return np.array([*known, *answer])


def lawson(columns, target, weights, known=(), rounds=40):
    """Weights for which the least squares fit has nearly the least greatest weighted error."""
    shares, best, least = weights * 0 + 1, weights, mp.inf
    for _ in range(rounds):
        current = weights * root(shares)
        errors = abs(weights * (target - solve(columns, target, current, known) @ columns))
        if errors.max() < least:
            best, least = current, errors.max()
        shares = shares * errors
        shares = shares / shares.max()
    return best


def show_fit(name, kind, columns, target, weights, known=()):
    """Print the rounded coefficients, and their greatest weighted error."""
    current = lawson(columns, target, weights, known)
    answer = list(known)
    while len(answer) < len(columns):
        answer.append(rounded(solve(columns, target, current, answer)[len(answer)], kind))
    show(name, kind, answer, abs(weights * (target - np.array(answer) @ columns)).max())


def show_expm1(kind, degree, xs):
    """Fit and print expm1."""
    ms = np.array([mp.expm1(x) for x in xs])
    target, weights = (ms - xs) / xs**2, xs**2 / abs(ms)
    show_fit("kExpm1", kind, powers(xs, degree), target, weights, [HALF])


def denominator(zs, values, degree, kind):
    """The rounded denominator, lowest degree first, of the best N/D with N(0) = 1/2, D(0) = 1."""
    columns = np.vstack([powers(zs, degree - 1, 1), -values * powers(zs, degree, 1)])
    bottom = (1 + zs / 4) ** degree
    for rounds in (1, 1, 1, 1, 1, 40, 40):
        weights = 1 / (values * bottom)
        current = lawson(columns, values - HALF, weights, rounds=rounds)
        answer = [mpf(1), *solve(columns, values - HALF, current)[degree - 1 :]]
        bottom = np.array(answer) @ powers(zs, degree)
    return [rounded(c, kind) for c in answer]


def literal(number, kind):
    """The number in C++."""
    mantissa, exponent = float(number).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}{'f' if kind == 'float' else ''}"


def show(name, kind, coefficients, error=None):
    """Print a C++ table, highest degree first."""
    note = "" if error is None else f", error {float(error * mpf(2) ** BITS[kind]):.3f} ulp"
    print(f"static constexpr {kind} {name}[] = {{\n// degree {len(coefficients) - 1}{note}")
    print(*(f"{literal(coefficient, kind)}," for coefficient in reversed(coefficients)), "\n};")


def tail_over_gaussian(z):
    """The normal tail Q(z) over exp(-z^2/2)."""
    return mp.erfc(z / mp.sqrt(2)) * mp.exp(z * z / 2) / 2


def tail_points(limit):
    """Some z from 0 to the limit, and the tail there."""
    end = (limit - 4) / (limit + 4)
    zs = np.array([4 * (1 + x) / (1 - x) for x in grid(mpf(-1), end)])
    return zs, np.array([tail_over_gaussian(z) for z in zs])


def show_short():
    """Fit and print the tables for results of 11 bits, in float."""
    exp2_degree, exp_degree, log_degree, tail_degree = SHORT
    print("template <>\nstruct Coefficients<Short<float>> {")
    rs = grid(-HALF, HALF)
    values = np.array([mpf(2) ** r for r in rs])
    show_fit("kExp2", "float", powers(rs, exp2_degree), values, 1 / values, [mpf(1)])
    show_expm1("float", exp_degree, grid(-HALF, -(mpf(10) ** -12)))
    us = grid(mpf(10) ** -12, mpf(1))
    slopes = np.array([mp.log1p(u) / u for u in us])
    show_fit("kLog1p", "float", powers(us, log_degree), slopes, 1 / slopes, [mpf(1)])
    zs, values = tail_points(LIMIT["float"])
    p = rounded(mpf(SHORT_P), "float")
    sizes = [
        z * value * mp.exp(-z * z / 2) if z > 1 else 1 for z, value in zip(zs, values, strict=True)
    ]
    slack = np.array([min(mpf(8), max(mpf(1), mpf(2) ** -14 / size)) for size in sizes])
    root_of_slope = mp.findroot(lambda z: tail_over_gaussian(z) - z / mp.sqrt(2 * mp.pi), 0.75)
    zs = np.append(zs, root_of_slope)
    values = np.append(values, tail_over_gaussian(root_of_slope))
    slack = np.append(slack, mpf(10) ** -3)
    columns = powers(1 / (1 + p * zs), tail_degree + 1, 1)
    print(f"static constexpr float kTailScale = {literal(p, 'float')};")
    show_fit("kTail", "float", columns, values, 1 / values / slack)
    print("};")


def show_precise(kind, exp_degree, log_degree, tail_degree):
    """Fit and print the tables for results as precise as the type."""
    print(f"template <>\nstruct Coefficients<{kind}> {{")
    high = mp.floor(mp.ln2 * mpf(2) ** KEPT[kind]) / mpf(2) ** KEPT[kind]
    for name, part in (("High", high), ("Low", rounded(mp.ln2 - high, kind))):
        print(f"static constexpr {kind} kLn2{name} = {literal(part, kind)};")
    end = mp.ln2 / 2 * mpf("1.001")
    show_expm1(kind, exp_degree, grid(-end, end))
    roots = root(grid(mpf(10) ** -12, mpf(1) / 9))
    logs = 2 * np.array([mp.atanh(s) for s in roots])
    values, weights = (logs / roots - 2) / roots**2, roots**3 / logs
    show_fit("kLog1p", kind, powers(roots**2, log_degree), values, weights)
    zs, values = tail_points(LIMIT[kind])
    bottom = denominator(zs, values, tail_degree + 1, kind)
    values = values * (np.array(bottom) @ powers(zs, tail_degree + 1))
    show_fit("kTailTop", kind, powers(zs, tail_degree), values, 1 / values, [HALF])
    show("kTailBottom", kind, bottom)
    print("};")


def main():
    """Write the tables into the header. What stands above the tables stays."""
    head = HEADER.read_text().partition("template <>\n")[0]
    with contextlib.redirect_stdout(io.StringIO()) as tables:
        for kind, degrees in DEGREES.items():
            show_precise(kind, *degrees)
        show_short()
    HEADER.write_text(head + tables.getvalue() + "\n}  // namespace math\n}  // namespace actreg\n")


if __name__ == "__main__":
    main()
