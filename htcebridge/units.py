"""Durations and sizes as people write them ("12h", "494000M"), and back."""

from __future__ import annotations

import re
from datetime import timedelta

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)([smhd])")
# Slurm's and HTCondor's megabyte alike is 2**20 bytes (sbatch(1) --mem, RequestMemory).
_MEGABYTES = {"M": 1, "G": 1024, "T": 1024**2}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([MGT])(?:i?B)?", re.IGNORECASE)


def parse_duration(text: object) -> timedelta:
    """Read "90s", "15m", "12h", "2d" or a sum such as "1h30m". Raises ValueError."""
    if isinstance(text, timedelta):
        return text
    compact = text.replace(" ", "") if isinstance(text, str) else ""
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f'{text!r} is not a duration; write one like "90s", "15m", "12h", "2d" or "1h30m"')
    try:
        return timedelta(seconds=sum(int(number) * _SECONDS[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError(f"{text!r} is longer than any job can be") from None


def parse_megabytes(text: object) -> int:
    """Read "494000M", "494G" or "3T" as MiB. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(text.replace(" ", "")) if isinstance(text, str) else None
    if not found:
        raise ValueError(f'{text!r} is not a size; write one like "494000M", "494G" or "3T"')
    try:
        return int(float(found[1]) * _MEGABYTES[found[2].upper()])
    except OverflowError:
        raise ValueError(f"{text!r} is more than any node has") from None


def format_duration(seconds: float) -> str:
    """Seconds as the shortest text that `parse_duration` reads back: 5400 is "1h30m"."""
    rest = round(seconds)
    sign, rest = ("-", -rest) if rest < 0 else ("", rest)
    text = ""
    for unit in "dhms":
        count, rest = divmod(rest, _SECONDS[unit])
        if count:
            text += f"{count}{unit}"
    return sign + (text or "0s")


def plural(count: int, noun: str) -> str:
    """ "1 job", "2 jobs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_megabytes(megabytes: int) -> str:
    """MiB in the largest unit that keeps the number whole: 3145728 is "3T"."""
    for unit in "TG":
        if megabytes and megabytes % _MEGABYTES[unit] == 0:
            return f"{megabytes // _MEGABYTES[unit]}{unit}"
    return f"{megabytes}M"
