"""Random programs around act_reg, checked by the rule in tests/programs.py.

Every run tests the same programs. `make fuzz MINUTES=60` runs rounds of other programs, until the
time is over. A failing test prints a script that repeats the failure. `--hypothesis-seed` repeats a
round. If the script does not fail, earlier programs may matter: a failed trace can leave PyTorch in
a bad state.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from tests import strategies
from tests.programs import Program, check, script

pytestmark = pytest.mark.usefixtures("nothing_compiled_yet")
FUZZ = bool(os.environ.get("FUZZ"))  # set by `make fuzz`


def some(programs: int) -> settings:
    """How many programs of a family: the same ones in every run, except in `make fuzz`."""
    return settings(
        max_examples=programs,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
    )


def run(program: Program) -> None:
    try:
        check(program)
    except Exception as error:
        note(script(program, error))
        raise


@some(200)
@given(strategies.FAMILIES["layout"])
def test_layouts(program: Program) -> None:
    run(program)


@some(80)
@given(strategies.FAMILIES["layers"])
def test_layers(program: Program) -> None:
    run(program)


@some(180)
@given(strategies.FAMILIES["autograd"])
def test_autograd(program: Program) -> None:
    run(program)


@some(100)
@given(strategies.FAMILIES["functorch"])
def test_functorch(program: Program) -> None:
    run(program)


@some(30)
@given(strategies.FAMILIES["tracing"])
def test_tracing(program: Program) -> None:
    run(program)


@some(8)
@given(strategies.FAMILIES["compile"])
def test_compile(program: Program) -> None:
    run(program)


if FUZZ:  # each program takes seconds

    @some(3)
    @given(strategies.FAMILIES["inductor"])
    def test_inductor(program: Program) -> None:
        run(program)
