"""The results file: what a session found, on which machine, by which command; and as CSV."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .timing import Laps, paired, spread, together

SCHEMA = 1
DIGITS = 4  # significant: the times are not better than that


class Unfit(ValueError):
    """A results file that must not be shown as what it says it is."""


def collect(
    machine: dict[str, Any],
    command: str,
    preset: str,
    slices: Iterable[str],
    absent: dict[str, str],
) -> dict[str, Any]:
    """A file without results yet."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        "command": command,
        "preset": preset,
        "slices": list(slices),
        "absent": absent,
        "left_out": [],
        "groups": [],
    }


def add(results: dict[str, Any], group: dict[str, Any]) -> None:
    """A group, or what another pass or process found in the same case: its rounds come after."""
    for known in results["groups"]:
        if known["case"] == group["case"]:
            break
    else:
        parts = ("errors", "failed", "memory", "laps", "times")
        known = {**group, **{part: {} for part in parts}}
        results["groups"].append(known)
    for part in ("errors", "failed", "memory"):
        known[part] = rounded(group[part]) | known[part]
    for direction, more in group["laps"].items():
        laps = together(known["laps"].get(direction, {}), more)
        known["laps"][direction] = laps
        known["times"][direction] = {
            name: rounded(summary(laps, name, moved(known["case"], direction))) for name in laps
        }


def moved(case: dict[str, Any], direction: str) -> int | None:
    """Bytes that a call cannot do without; of a network nobody knows."""
    if case["place"] != "call":
        return None
    passes = {"forward": 2, "backward": 3, "both": 5}[direction]
    return int(passes * case["elements"] * getattr(torch, case["dtype"]).itemsize)


def summary(laps: dict[str, Laps], name: str, size: int | None) -> dict[str, Any]:
    """Of one rival: its time, and how many of the operator's and of the floor's it is."""
    own = laps[name].values()
    seconds = spread([lap.device for lap in own])
    found: dict[str, Any] = {"seconds": seconds, "rounds": len(own)}
    found["host"] = spread([lap.host for lap in own]).median
    # How many times faster the operator is, and how many times it takes that the memory alone does.
    for ratio, rival in (("faster", "fused"), ("floors", "floor")):
        if name != rival and (ratios := paired(laps[name], laps.get(rival, {}))):
            found[ratio] = ratios
    if size:
        found["gb_per_s"] = size / seconds.median / 1e9
    return found | {"calls": max(lap.calls for lap in own)}


def finished(results: dict[str, Any]) -> dict[str, Any]:
    """Without the single laps, which no file has."""
    groups = [
        {part: found for part, found in group.items() if part != "laps"}
        for group in results["groups"]
    ]
    return {**results, "groups": groups}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None  # as JSON has neither


def save(results: dict[str, Any], path: Path) -> None:
    """One line for each group, so that a file is small and its differences can be read.

    The old file stays until the new one is complete.
    """
    results = finished(results)
    head = {key: value for key, value in results.items() if key != "groups"}
    text = json.dumps(head, indent=1).removesuffix("\n}")
    groups = ",\n  ".join(json.dumps(group) for group in results["groups"])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(f'{text},\n "groups": [\n  {groups}\n ]\n}}\n')
    new.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Raises Unfit for anything but results of this version."""
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise Unfit(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise Unfit(f"{path} is no results file of schema {SCHEMA}")
    return found


def digest(results: dict[str, Any]) -> str:
    """Of all that was found: the same before and after the file."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def check_device(results: dict[str, Any], path: Path) -> None:
    """Figures of a GPU stand only if a GPU made them: it is described, and was seen to run kernels.

    Raises Unfit otherwise.
    """
    machine = results["machine"]
    if machine["device"] == "cpu":
        return
    if not machine.get("capability"):
        raise Unfit(f"{path} says it was made on {machine['device']}, and names no GPU")
    for group in results["groups"]:
        for name, found in group["memory"].items():
            if not found["launches"]:
                raise Unfit(f"{path}: {name} launched no kernel in {group['case']}")


def is_part(results: dict[str, Any]) -> bool:
    """Whether it is but the addition to another file, with reused memory."""
    return bool(results["preset"] == "reused")


def whole(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the pages have figures and all tables of."""
    return [results for results in found if not is_part(results)]


def rows(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Flat: one for each case, direction and provider that was timed."""
    for group in results["groups"]:
        for direction, times in group["times"].items():
            for provider, found in times.items():
                memory = group["memory"].get(provider, {})
                error, penalty_error = group["errors"][provider]
                yield {
                    **group["case"],
                    "direction": direction,
                    "provider": provider,
                    **found,
                    **memory,
                    "error": error,
                    "penalty_error": penalty_error,
                }


def wrong(results: dict[str, Any]) -> list[str]:
    """What was not timed because its numbers were not right, or because it failed."""
    found = []
    for group in results["groups"]:
        timed = {name for times in group["times"].values() for name in times}
        case = " ".join(str(value) for value in group["case"].values())
        for name, error in group["errors"].items():
            if name not in timed and group["times"]:
                off = ["wholly" if e is None else f"by {e:.2g}" for e in error]
                found.append(f"{name}: {case}: is off {off[0]}, its penalty {off[1]}")
        found += [f"{name}: {case}: {why}" for name, why in group["failed"].items()]
    return found


def write_csv(results: dict[str, Any], path: Path) -> None:
    """A spread becomes three columns; the machine goes into columns too, to join many files."""
    flat = []
    machine = {key: results["machine"][key] for key in ("device", "name", "threads", "commit")}
    for row in rows(results):
        line: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, list | tuple):
                line |= dict(zip((key, f"{key}_20", f"{key}_80"), value, strict=True))
            else:
                line[key] = value
        flat.append(line | machine)
    columns = list(dict.fromkeys(key for line in flat for key in line))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
