"""Values out of ads: whoever wrote the ad chose them, and none of them may stop a cycle.

Used by the child that asks the daemons as well, so it imports nothing of this package.
"""

from __future__ import annotations

from typing import Any

# An exabyte in KiB, thirty million years in seconds. SQLite's integers end at 2**63, and what is read is multiplied.
MOST = 10**15
# Cores or GPUs of one machine.
MOST_UNITS = 10**6


class BadValue(ValueError):
    """What an attribute holds instead of something to count with, as a sentence."""


def number(ad: Any, name: str, absent: int = 0, most: int = MOST) -> int:
    """An attribute as a whole number from 0 to `most`, `absent` where it is missing or undefined. Raises BadValue."""
    value = evaluated(ad, name)
    return absent if value is None else whole(value, name, most)


def whole(value: Any, name: str, most: int = MOST) -> int:
    """A ClassAd's value as a whole number from 0 to `most`; `name` is for the sentence. Raises BadValue.

    classad2.Value is an IntEnum (ERROR is 1, UNDEFINED 2) and bool an int: only the very types are numbers.
    """
    if type(value) not in (int, float):
        raise BadValue(f"{name} is {_kind(value)}, not a number")
    if not 0 <= value <= most:  # NaN is neither
        raise BadValue(f"{name} is {value:g}, not a number from 0 to {most:.0e}")
    return int(value)


def evaluated(ad: Any, name: str) -> Any:
    """An attribute's value, None where it is missing or undefined. Raises BadValue if it cannot be evaluated.

    The bindings raise what they like: UnicodeDecodeError for a string, SystemError for a list with one in it,
    ValueError for a year after 9999, their own for 500 nested terms (25.14).
    """
    import classad2

    try:
        value = ad.eval(name) if name in ad else None
    except Exception as error:
        raise BadValue(f"{name} cannot be evaluated ({type(error).__name__})") from None
    return None if value is classad2.Value.Undefined else value


def number_or(default: int, ad: Any, name: str, most: int = MOST) -> int:
    """`number`, and `default` as well where there is none."""
    try:
        return number(ad, name, default, most)
    except BadValue:
        return default


def text(ad: Any, name: str) -> str:
    """An attribute as the text that it is, an expression as it is written; "" where there is none to read."""
    try:
        return str(ad.get(name, ""))
    except Exception:  # as above
        return ""


def _kind(value: object) -> str:
    """A value in few words; a text's own words go nowhere."""
    if isinstance(value, bool):
        return str(value).lower()
    return {"Value": "an error or undefined", "str": "a string", "list": "a list"}.get(
        type(value).__name__, "something else"
    )
