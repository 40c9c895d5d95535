"""Reads the machine code (SASS) of a CUDA kernel: what it executes for each element.

The main loop over whole tiles is found as the shortest cycle in the control flow with all 128-bit
loads and a 128-bit store on it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

Pipes = dict[str, tuple[int, str]]

# Pipe: how many issue slots of a scheduler an instruction keeps it busy, and which instructions use
# it. Slots = 128 / (lanes of a multiprocessor), by the throughputs of compute capability 9.0 in
# "Arithmetic Instructions" of the CUDA C++ Programming Guide.
PIPES: Pipes = {
    "issue": (1, ""),
    "fma": (1, r"FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2|IMAD"),
    "multiply": (2, r"IMAD"),  # one half of the former
    "alu": (
        2,
        r"BMSK|F2FP|FCHK|FMNMX|FSEL|FSET|IABS|IADD|IMNMX|ISETP|LEA|LOP3|PLOP3|PRMT|SEL|SGXT|SHF|"
        r"VIADD|VIMNMX",
    ),
    "special": (8, r"MUFU|F2F$|I2F|F2I|FRND|FLO|POPC"),
    "double": (2, r"DADD|DMUL|DFMA|DSETP|DMNMX"),
    "shuffle": (4, r"SHFL"),
}
# 8.0 has half the lanes for floating point, 12.0 two for doubles. 10.0 is assumed to be like 9.0.
PIPES_OF: dict[str, Pipes] = {
    "sm_80": {**PIPES, "fma": (2, PIPES["fma"][1]), "double": (4, PIPES["double"][1])},
    "sm_120": {**PIPES, "double": (64, PIPES["double"][1])},
}
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)


class Instruction(NamedTuple):
    address: int
    guarded: bool  # by a predicate
    name: str  # with its modifiers: LDG.E.128
    operands: str


Body = list[Instruction]


def count(body: Body, pattern: str) -> int:
    """Return how many instructions match the pattern."""
    return sum(re.match(pattern, i.name) is not None for i in body)


def busiest(body: Body, architecture: str) -> tuple[int, str]:
    """Return the slots of the pipe that takes most of them, and its name."""
    pipes = PIPES_OF.get(architecture, PIPES)
    opcodes = [i._replace(name=i.name.split(".")[0]) for i in body]
    return max((slots * count(opcodes, names), pipe) for pipe, (slots, names) in pipes.items())


def functions(listing: str) -> Iterator[tuple[str, Body]]:
    """Yield each function of a listing by cuobjdump -sass: its mangled name and instructions."""
    for part in listing.split("Function : ")[1:]:
        name, _, lines = part.partition("\n")
        body = []
        for address, text in _LINE.findall(lines):
            guard = re.match(r"@!?U?P\w+\s+", text)
            opcode, _, operands = text[guard.end() if guard else 0 :].partition(" ")
            guarded = guard is not None and not guard[0].startswith("@PT")
            body.append(Instruction(int(address, 16), guarded, opcode, operands.strip()))
        yield name.strip(), body


def _successors(body: Body) -> list[list[int]]:
    """Return, for each instruction, those that may follow it."""
    index = {instruction.address: i for i, instruction in enumerate(body)}

    def target(instruction: Instruction) -> int:
        found = re.search(r"(0x[0-9a-f]+)\s*$", instruction.operands)
        assert found, instruction
        return index[int(found[1], 16)]

    meeting: dict[str, set[int]] = {}  # where threads continue that waited at a barrier register
    for instruction in body:
        if instruction.name.startswith("BSSY"):
            register = instruction.operands.split(",")[0]
            meeting.setdefault(register, set()).add(target(instruction))
    result: list[list[int]] = []
    for i, instruction in enumerate(body):
        following = [i + 1] if i + 1 < len(body) else []
        conditional = instruction.guarded or re.match(r"!?U?P\d", instruction.operands)
        match instruction.name.split(".")[0]:
            case "BRA" if instruction.name == "BRA.DIV":  # only a divergent warp jumps
                result.append(following)
            case "BRA":
                result.append([target(instruction)] + (following if conditional else []))
            case "BSYNC":  # usually the place is next; a register may serve several places
                places = meeting.get(instruction.operands, {i + 1})
                if i + 1 not in places and len(places) > 1:
                    raise ValueError(f"unknown where {instruction} continues")
                result.append([i + 1] if i + 1 in places else sorted(places))
            case "EXIT" | "RET" | "BRX":
                result.append(following if conditional else [])
            case _:
                result.append(following)
    return result


def _shortest(
    starts: Collection[Any], ends: Collection[Any], after: Callable[[Any], Iterable[Any]]
) -> list[Any] | None:
    """Return the shortest path from a start to an end, without the start; None if there is none."""
    previous = dict.fromkeys(sorted(starts))
    queue = deque(previous)
    while queue:
        state = queue.popleft()
        if state in ends:
            path = []
            while state not in starts:
                path.append(state)
                state = previous[state]
            return path
        for new in after(state):
            if new not in previous:
                previous[new] = state
                queue.append(new)
    return None


def main_loops(body: Body, loads: int) -> list[Body]:
    """Return a cycle for each place with 128-bit stores and that many loads, the shortest first."""
    successors = _successors(body)
    wide = [(found := re.match(r"(LDG|STG)\S*\.128", i.name)) and found[1] for i in body]

    def after(state: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """State: an instruction, and the number of loads on the way there."""
        for i in successors[state[0]]:
            yield i, min(state[1] + (wide[i] == "LDG"), loads)

    cycles: list[list[int]] = []
    for store in (i for i, kind in enumerate(wide) if kind == "STG"):
        if not any(store in cycle for cycle in cycles):
            path = _shortest([(store, 0)], [(store, loads)], after) or []
            cycle = sorted({i for i, _ in path})
            if cycle and len(cycle) == len(path):  # else it is a second lap
                cycles.append(cycle)
    return [[body[i] for i in cycle] for cycle in sorted(cycles, key=len)]


def way(body: Body, begin: str, end: str, loop: Body) -> int:
    """Return the fewest instructions from one that matches `begin` to one that matches `end`.

    If the loop has such an instruction, it is that one. An empty pattern is the kernel's start.
    """
    successors = _successors(body)
    addresses = {instruction.address for instruction in loop}

    def places(name: str) -> set[int]:
        if not name:
            return {0}
        found = {i for i, instruction in enumerate(body) if re.match(name, instruction.name)}
        return {i for i in found if body[i].address in addresses} or found

    return len(_shortest(places(begin), places(end), lambda i: successors[i]) or [])
