"""What a CUDA kernel executes for each element, read off its machine code (SASS).

The inner loop's way through whole tiles is the cheapest cycle in the control flow that has both a
128-bit load and a 128-bit store on it; what its instructions cost is counted in issue slots, and
for each pipe that issues slower than one instruction a slot.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

# Slots of a scheduler that a warp's instruction keeps its pipe busy: 32 lanes, of which the pipe of
# one of a multiprocessor's four schedulers takes so many in a clock. CUDA C++ Programming Guide,
# "Arithmetic Instructions", compute capability 9.0.
PIPES = {
    "fma": (1, r"FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2"),
    "alu": (
        2,
        r"FSEL|FSETP|FMNMX|FSET|FCHK|ISETP|IADD|VIADD|IABS|IMNMX|VIMNMX|LEA|LOP|PLOP|SHF|SHL|SHR|SEL|PRMT|"
        r"F2FP|LOP3|BMSK|SGXT|VOTE|HSET",
    ),
    "imad": (2, r"IMAD"),
    "special": (8, r"MUFU|F2F|I2F|F2I|FRND|I2I|POPC|FLO"),
    "double": (2, r"DADD|DMUL|DFMA|DSETP|DMNMX"),
    "shuffle": (4, r"SHFL"),
}
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")


class Instruction(NamedTuple):
    address: int
    guarded: bool  # by a predicate
    name: str  # with its modifiers: LDG.E.128
    operands: str


class Loop(NamedTuple):
    instructions: list[Instruction]

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, i.name)) for i in self.instructions)

    def pipes(self) -> dict[str, int]:
        """Return the slots that each pipe, and issuing itself, is busy."""
        busy = {"issue": len(self.instructions)}
        for pipe, (slots, names) in PIPES.items():
            busy[pipe] = slots * self.count(names)
        # What adds and moves goes to the multiplier where that has time: the compiler's choice.
        return busy


def functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
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
            text = text[guard.end() :] if guard else text
            opcode, _, operands = text.partition(" ")
            guarded = guard is not None and not guard[0].startswith("@PT")
            body.append(Instruction(int(found[1], 16), guarded, opcode, operands.strip()))
    if body:
        yield name, body


def _target(instruction: Instruction) -> int | None:
    found = re.search(r"(0x[0-9a-f]+)\s*$", instruction.operands)
    return int(found[1], 16) if found else None


def _successors(body: list[Instruction]) -> list[list[int]]:
    """Return, for each instruction, those that may follow it."""
    index = {instruction.address: i for i, instruction in enumerate(body)}
    meeting = {}  # where the threads that wait at a barrier register go on
    for instruction in body:
        if instruction.name.startswith("BSSY"):
            target = _target(instruction)
            assert target is not None
            meeting.setdefault(instruction.operands.split(",")[0], set()).add(index[target])
    result: list[list[int]] = []
    for i, instruction in enumerate(body):
        name = instruction.name.split(".")[0]
        conditional = instruction.guarded or re.match(r"!?U?P\d|!?UP\d", instruction.operands)
        following = [i + 1] if i + 1 < len(body) else []
        if name == "BRA":
            target = _target(instruction)
            assert target is not None
            result.append([index[target]] + (following if conditional else []))
        elif name == "BSYNC":
            result.append(sorted(meeting.get(instruction.operands, {i + 1})))
        elif name in ("EXIT", "RET", "BRX"):
            result.append(following if conditional else [])
        else:
            result.append(following)
    return result


def main_loop(body: list[Instruction]) -> Loop | None:
    """Return the cheapest cycle with a 128-bit load and a 128-bit store, if there is one."""
    successors = _successors(body)
    wide = re.compile(r"(LDG|STG)\S*\.128")
    kinds = [found[1] if (found := wide.match(i.name)) else "" for i in body]
    start = next((i for i, kind in enumerate(kinds) if kind == "STG"), None)
    best: list[int] | None = None
    # From a store back to itself by way of a load: a search over (instruction, seen a load).
    if start is None:
        return None
    previous: dict[tuple[int, bool], tuple[int, bool]] = {}
    queue: list[tuple[int, int, bool]] = [(0, start, False)]
    cost = {(start, False): 0}
    while queue:
        distance, at, seen = heapq.heappop(queue)
        if (at, seen) == (start, True):
            best, state = [], (start, True)
            while state in previous:
                best.append(state[0])
                state = previous[state]
            break
        if distance > cost[at, seen]:
            continue
        for following in successors[at]:
            state = (following, seen or kinds[following] == "LDG")
            if distance + 1 < cost.get(state, 1 << 30):
                cost[state] = distance + 1
                previous[state] = (at, seen)
                heapq.heappush(queue, (distance + 1, *state))
    return Loop([body[i] for i in sorted(best)]) if best else None


def mix(loop: Loop) -> Counter[str]:
    """Return how often each opcode is executed."""
    return Counter(i.name.split(".")[0] for i in loop.instructions)
