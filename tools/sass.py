"""What a CUDA kernel executes for each element, read off its machine code (SASS).

A way through the loop over the steps of a whole tile is a cycle in the control flow that has all
the 128-bit loads and a 128-bit store on it.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from typing import NamedTuple

Pipes = dict[str, tuple[int, str]]

# How many of the slots in which a scheduler could issue an instruction one of these keeps its pipe
# busy, which takes 128 / (lanes for each clock of a multiprocessor) of them: the throughputs of
# compute capability 9.0 in "Arithmetic Instructions" of the CUDA C++ Programming Guide.
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
# 8.0 has half as many lanes for floating point, 12.0 two for doubles; 10.0 is taken to be as 9.0.
PIPES_OF: dict[str, Pipes] = {
    "sm_80": {**PIPES, "fma": (2, PIPES["fma"][1]), "double": (4, PIPES["double"][1])},
    "sm_120": {**PIPES, "double": (64, PIPES["double"][1])},
}
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")


class Instruction(NamedTuple):
    address: int
    guarded: bool  # by a predicate
    name: str  # with its modifiers: LDG.E.128
    operands: str


Body = list[Instruction]


def count(body: Body, pattern: str) -> int:
    """Return how many instructions are called so."""
    return sum(re.match(pattern, i.name) is not None for i in body)


def busiest(body: Body, architecture: str) -> tuple[int, str]:
    """Return the pipe that takes most slots, and how many."""
    pipes = PIPES_OF.get(architecture, PIPES)
    opcodes = [i._replace(name=i.name.split(".")[0]) for i in body]
    return max((slots * count(opcodes, names), pipe) for pipe, (slots, names) in pipes.items())


def functions(listing: str) -> Iterator[tuple[str, Body]]:
    """Yield each function of a listing by cuobjdump -sass: its mangled name and instructions."""
    name, body = "", []
    for line in listing.splitlines():
        if found := _FUNCTION.match(line):
            if body:
                yield name, body
            name, body = found[1], []
        elif found := _LINE.match(line):
            text = found[2].strip()
            guard = re.match(r"@!?U?P\w+\s+", text)
            opcode, _, operands = text[guard.end() if guard else 0 :].partition(" ")
            guarded = guard is not None and not guard[0].startswith("@PT")
            body.append(Instruction(int(found[1], 16), guarded, opcode, operands.strip()))
    if body:
        yield name, body


def _successors(body: Body) -> list[list[int]]:
    """Return, for each instruction, those that may follow it."""
    index = {instruction.address: i for i, instruction in enumerate(body)}

    def target(instruction: Instruction) -> int:
        found = re.search(r"(0x[0-9a-f]+)\s*$", instruction.operands)
        assert found, instruction
        return index[int(found[1], 16)]

    meeting: dict[str, set[int]] = {}  # where the threads that wait at a barrier register go on
    for instruction in body:
        if instruction.name.startswith("BSSY"):
            register = instruction.operands.split(",")[0]
            meeting.setdefault(register, set()).add(target(instruction))
    result: list[list[int]] = []
    for i, instruction in enumerate(body):
        following = [i + 1] if i + 1 < len(body) else []
        conditional = instruction.guarded or re.match(r"!?U?P\d", instruction.operands)
        match instruction.name.split(".")[0]:
            case "BRA" if instruction.name == "BRA.DIV":  # to where a divergent warp would go
                result.append(following)
            case "BRA":
                result.append([target(instruction)] + (following if conditional else []))
            case "BSYNC":  # most stand right before the place; a register serves several
                places = meeting.get(instruction.operands, {i + 1})
                if i + 1 not in places and len(places) > 1:
                    raise ValueError(f"where does {instruction} go on?")
                result.append([i + 1] if i + 1 in places else sorted(places))
            case "EXIT" | "RET" | "BRX":
                result.append(following if conditional else [])
            case _:
                result.append(following)
    return result


def main_loops(body: Body, loads: int) -> list[Body]:
    """Return the ways with so many 128-bit loads and a 128-bit store, the cheapest first.

    One for each place that has the stores.
    """
    successors = _successors(body)
    wide = [(found := re.match(r"(LDG|STG)\S*\.128", i.name)) and found[1] for i in body]
    cycles: list[list[int]] = []
    stores = [i for i, kind in enumerate(wide) if kind == "STG"]
    while stores:
        if cycle := _shortest_cycle(successors, wide, stores[0], loads):
            cycles.append(cycle)
        stores = [store for store in stores[1:] if store not in cycle]
    return [[body[i] for i in cycle] for cycle in sorted(cycles, key=len)]


def way(body: Body, begin: str, end: str, loop: Body) -> int:
    """Return the fewest instructions from one that is called so to another.

    An instruction of the loop where the loop has one; an empty name is the kernel's start.
    """
    successors = _successors(body)
    addresses = {instruction.address for instruction in loop}

    def places(name: str) -> set[int]:
        if not name:
            return {0}
        found = {i for i, instruction in enumerate(body) if re.match(name, instruction.name)}
        return {i for i in found if body[i].address in addresses} or found

    distances = dict.fromkeys(places(begin), 0)
    queue, ends = list(distances), places(end)
    for i in queue:  # which grows
        if i in ends:
            return distances[i]
        for j in successors[i]:
            if j not in distances:
                distances[j] = distances[i] + 1
                queue.append(j)
    return 0


def _shortest_cycle(
    successors: list[list[int]], wide: list[str | None], store: int, loads: int
) -> list[int]:
    """Return the shortest way from a store back to it with so many wide loads on it."""
    start, end = (store, 0), (store, loads)  # and the number of loads on the way
    previous: dict[tuple[int, int], tuple[int, int]] = {}
    cost, queue = {start: 0}, [(0, start)]
    while queue:
        distance, state = heapq.heappop(queue)
        if state == end:
            path = []
            while state in previous:
                path.append(state[0])
                state = previous[state]
            return sorted(path) if len(set(path)) == len(path) else []  # no second lap
        for i in successors[state[0]]:
            after = (i, min(state[1] + (wide[i] == "LDG"), loads))
            if distance + 1 < cost.get(after, distance + 2):
                cost[after], previous[after] = distance + 1, state
                heapq.heappush(queue, (distance + 1, after))
    return []
