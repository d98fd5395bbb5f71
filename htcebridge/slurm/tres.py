"""Slurm's trackable resources, as it prints them: "cpu=112,mem=494000M,node=1,gres/gpu:a100=4". Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from htcebridge.errors import UnknownState

Tres = Mapping[str, float]
"""Slurm's name of a trackable resource -> how much of it; memory in MiB."""

# -O and not -o: "%C" asks slurmctld for every job's details, this does not (squeue.c). Width 0 cuts nothing.
HELD_FORMAT = "JobArrayID:0|,tres-alloc:0"
# 24.11, 26.05. It is asked for so that no answer at all differs from an empty queue.
HELD_HEADER = "JOBID|TRES_ALLOC"
_MIB = {"K": 2**-10, "": 1, "M": 1, "G": 2**10, "T": 2**20, "P": 2**30}
_PART = re.compile(r"([\w/:.-]+)=(\d+(?:\.\d+)?)([KMGTP]?)")
_NONE = ("", "N/A", "(null)")


def parse_tres(text: str) -> dict[str, float]:
    """ "cpu=100,mem=2T,gres/gpu=4" -> amounts. Raises UnknownState."""
    found = {}
    for part in filter(None, text.split(",")):
        match = _PART.fullmatch(part)
        if not match or (match[3] and match[1] in ("cpu", "node")):
            raise UnknownState(f"Slurm printed a TRES that is none: {part[:60]!r}")
        found[match[1]] = float(match[2]) * (_MIB[match[3]] if match[1] == "mem" else 1)
    return found


def parse_held(output: str) -> dict[str, Tres]:
    """squeue's header and lines of `HELD_FORMAT` -> what each job holds, or asks for while it waits, by job id. Raises
    UnknownState."""
    lines = output.splitlines()
    if not lines or lines[0].rstrip() != HELD_HEADER:
        raise UnknownState(f"squeue did not begin with its own header: {output[:120]!r}")
    held: dict[str, Tres] = {}
    for line in lines[1:]:
        id_, separator, tres = line.rstrip().partition("|")
        if not (separator and re.fullmatch(r"[\d_+]+", id_)):
            raise UnknownState(f"squeue printed a line that is none of its own: {line[:120]!r}")
        held[id_] = {} if tres in _NONE else parse_tres(tres)
    return held
