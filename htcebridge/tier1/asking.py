"""What the questions of `query` have in common: the schedd that one is for, words and values of ads."""

from __future__ import annotations

from typing import Any

from htcebridge.tier1.advalues import MOST, BadValue, evaluated, number_or


def schedd_of(request: dict[str, Any]) -> Any:
    """The schedd that a question is for. Its address is known: the collector need not be asked again."""
    import classad2
    import htcondor2

    return htcondor2.Schedd(classad2.ClassAd({"MyAddress": request["address"], "CondorVersion": request["version"]}))


def quote(text: str) -> str:
    """Text as a ClassAd string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def count(ad: Any, name: str, most: int = MOST) -> int:
    """A number of a daemon's ad; 0 where there is none that can be believed."""
    return number_or(0, ad, name, most)


def said(ad: Any, name: str) -> Any:
    """What an attribute evaluates to; None where it does not."""
    try:
        return evaluated(ad, name)
    except BadValue:
        return None
