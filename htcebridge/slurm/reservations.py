"""When a partition's nodes are reserved for a maintenance, from what scontrol prints. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from htcebridge.errors import UnknownState

# More nodes than any partition has: a name that would be so many is none.
_MOST_NODES = 200_000


@dataclass(frozen=True)
class Maintenance:
    """A maintenance of nodes of one partition; times in seconds since the epoch.

    `whole`: it takes all of them. Of some, Slurm puts pilots onto the others.
    """

    name: str
    begins: int
    ends: int
    whole: bool


def parse_maintenances(output: str, partition: Mapping[str, str]) -> tuple[Maintenance, ...]:
    """`scontrol show reservation -o` -> the maintenances that touch this partition (a row of `parse_partition`).

    A comment may have line breaks, and anything else. Nodes that cannot be read are taken for all. Raises UnknownState.
    """
    head, *records = re.split(r"^(?=ReservationName=)", output, flags=re.MULTILINE)
    if head.strip() not in ("", "No reservations in the system") or not (head.strip() or records):
        raise UnknownState(f"scontrol show reservation said something else: {output.strip()[:120]!r}")
    return tuple(found for record in records if (found := _maintenance(record, partition)))


def _maintenance(record: str, partition: Mapping[str, str]) -> Maintenance | None:
    # The comment stands last: of two the first one is Slurm's own.
    row = dict(reversed(re.findall(r"(\w+)=(\S*)", record)))
    flags = row.get("Flags", "").split(",")
    begins, ends = row.get("StartTime", ""), row.get("EndTime", "")
    if not (begins.isdecimal() and ends.isdecimal() and "Nodes" in row and "Flags" in row):
        raise UnknownState(f"scontrol show reservation said something else: {record.strip()[:120]!r}")
    if "MAINT" not in flags or row["Nodes"] in ("", "(null)"):
        return None
    taken, ours = expand_hosts(row["Nodes"]), expand_hosts(partition.get("Nodes", ""))
    whole = "ALL_NODES" in flags or taken is None or ours is None or ours <= taken
    if not whole and taken is not None and ours is not None and not ours & taken:
        return None
    return Maintenance(row["ReservationName"], int(begins), int(ends), whole)


def expand_hosts(text: str) -> frozenset[str] | None:
    """ "lrdn[0001-0003,0007],login1" -> the names; None where that is no list of hosts."""
    names: set[str] = set()
    for part in re.split(r",(?![^\[]*\])", text):
        if not re.fullmatch(r"(?:[\w.-]|\[[\d,-]+\])+", part):
            return None
        found = [""]
        for plain, listed in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            numbers = [plain] if plain else list(_numbers(listed))
            if not numbers or len(found) * len(numbers) > _MOST_NODES:
                return None
            found = [name + number for name in found for number in numbers]
        names.update(found)
    return frozenset(names)


def _numbers(text: str) -> Iterator[str]:
    """ "0001-0003,0007" -> the numbers, as wide as they are written; nothing where it is no such list."""
    spans = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", span) for span in text.split(",")]
    for span in spans if all(spans) else ():
        if span is not None:
            first, last = span[1], span[2] or span[1]
            most = min(int(last), int(first) + _MOST_NODES)
            yield from (f"{number:0{len(first)}}" for number in range(int(first), most + 1))
