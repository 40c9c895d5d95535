"""The results file: what a session measured, on which machine, by which command."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .timing import Laps, paired, spread, together

Json = dict[str, Any]  # an object of the file
SCHEMA = 2
DIGITS = 4  # significant: the times are not better than that
# A provider's time is also given as a multiple of the time of these, as "per_copy" and so on.
BASES = ("act_reg", "copy", "plain")
ADDITIONS = ("reused", "steps")  # presets that add a section to the pages of another file


class Unfit(ValueError):
    """A results file that must not be shown as what it claims to be."""


class Call(NamedTuple):
    """One case in one direction: what was found for each provider."""

    case: Json
    direction: str
    slices: list[str]  # the titles of its slices
    rows: dict[str, Json]


def collect(machine: Json, command: str, preset: str, slices: Sequence[str]) -> Json:
    """A file without results yet."""
    head = {"schema": SCHEMA, "machine": machine, "command": command, "preset": preset}
    return head | {"slices": slices, "left_out": [], "groups": []}


def add(results: Json, group: Json) -> None:
    """Add a group. If another process has measured the case, its rounds are taken together."""
    known = next((old for old in results["groups"] if old["case"] == group["case"]), None)
    if known is None:
        known = group | {part: {} for part in ("errors", "failed", "memory", "laps", "times")}
        results["groups"].append(known)
    for part in ("errors", "failed", "memory"):
        known[part] = rounded(group[part]) | known[part]
    for direction, more in group["laps"].items():
        laps = together(known["laps"].get(direction, {}), more)
        known["laps"][direction] = laps
        known["times"][direction] = {name: rounded(summary(laps, name)) for name in laps}


def summary(laps: dict[str, Laps], name: str) -> Json:
    """One provider's time, alone and as a multiple of the time of others."""
    own = laps[name].values()
    found: Json = {"seconds": spread([lap.device for lap in own]), "rounds": len(own)}
    found["host"] = spread([lap.host for lap in own]).median
    for base in BASES:
        if name != base and (ratios := paired(laps[name], laps.get(base, {}))):
            found[f"per_{base}"] = ratios
    return found


def finished(results: Json) -> Json:
    """Without the single laps, which are not saved."""
    groups = [{k: v for k, v in group.items() if k != "laps"} for group in results["groups"]]
    return {**results, "groups": groups}


def rounded(value: Any) -> Any:
    """Floats with few digits; NaN and infinity, which JSON does not have, are None."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def save(results: Json, path: Path) -> None:
    """One line for each group. The old file stays until the new one is complete."""
    results = finished(results)
    head = {key: value for key, value in results.items() if key != "groups"}
    text = json.dumps(head, indent=1).removesuffix("\n}")
    groups = ",\n  ".join(json.dumps(group) for group in results["groups"])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(f'{text},\n "groups": [\n  {groups}\n ]\n}}\n')
    new.replace(path)


def load(path: Path) -> Json:
    """Raises Unfit for anything but results of this schema."""
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise Unfit(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise Unfit(f"{path} is no results file of schema {SCHEMA}")
    return found


def digest(results: Json) -> str:
    """Marks the figures that were drawn from these results."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def check_device(results: Json, path: Path) -> None:
    """Raises Unfit for figures of a GPU unless a GPU is described and was seen to run kernels."""
    machine = results["machine"]
    if machine["device"] == "cpu":
        return
    if not machine.get("capability"):
        raise Unfit(f"{path} says it was made on {machine['device']}, but names no GPU")
    for group in results["groups"]:
        for name, found in group["memory"].items():
            if not found["launches"]:
                raise Unfit(f"{path}: {name} launched no kernel in {group['case']}")


def calls_of(results: Json) -> list[Call]:
    """In the order of the plan, those in which act_reg was timed."""
    found = []
    for group in results["groups"]:
        for direction, times in group["times"].items():
            rows = {
                name: {**row, **group["memory"].get(name, {}), "errors": group["errors"][name]}
                for name, row in times.items()
            }
            if "act_reg" in rows:
                found.append(Call(group["case"], direction, group["slices"], rows))
    return found


def wrong(results: Json) -> list[str]:
    """What was not timed because it failed or its numbers are wrong."""
    found = []
    for group in results["groups"]:
        timed = {name for times in group["times"].values() for name in times}
        case = " ".join(str(value) for value in group["case"].values())
        for name, error in group["errors"].items():
            if name not in timed and group["times"]:
                off = ["infinite" if e is None else f"{e:.2g}" for e in error]
                found.append(f"{name}: {case}: error {off[0]}, of the penalty {off[1]}")
        found += [f"{name}: {case}: {why}" for name, why in group["failed"].items()]
    return found
