"""Job ads from files, the CE's queue and its history, in the long form that the router reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from htcebridge.errors import ConfigError
from htcebridge.routes.ce import CE
from htcebridge.templates import classad_string
from htcebridge.tier1.fit import bindings

# Idle, running and held: what is done or leaving is routed no more, and the CE keeps it for weeks.
LIVE = "JobStatus == 1 || JobStatus == 2 || JobStatus == 5"


@dataclass(frozen=True)
class JobAd:
    """A job as the router reads it: long form, "Attr = value" lines.

    `label` is for people, `id` is the job's among those it is tried with; `filled` says what it lacked.
    """

    label: str
    id: str
    text: str
    filled: tuple[str, ...] = ()

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Attribute, as written -> expression."""
        return attributes_of(self.text)

    @property
    def owner(self) -> str:
        """Whom the CE's mapfile made of the submitter."""
        return attribute(self.attributes, "Owner").strip('"')


def read_files(paths: Iterable[Path]) -> list[JobAd]:
    """The ads of some files. Raises ConfigError with the file and, where it is one ad's fault, its line."""
    jobs = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not text") from None
        jobs += parse_ads(text, str(path))
    return numbered(jobs)


def from_queue(ce: CE, constraint: str = LIVE) -> list[JobAd]:
    """The jobs that are in the CE's queue now. Raises ConfigError, BridgeError."""
    said = replace(ce, timeout_s=max(ce.timeout_s, 300)).run(
        ["condor_q", "-allusers", "-long", "-constraint", constraint]
    )
    return numbered(parse_ads(said, "the CE's queue", may_be_empty=True))


def from_history(ce: CE, count: int) -> list[JobAd]:
    """The last `count` jobs that left the CE's queue. Raises ConfigError, BridgeError."""
    said = replace(ce, timeout_s=max(ce.timeout_s, 300)).run(["condor_history", "-long", "-limit", str(count)])
    return numbered(parse_ads(said, "the CE's history", may_be_empty=True))


def parse_ads(text: str, source: str, may_be_empty: bool = False) -> list[JobAd]:
    """Job ads, as condor_q -long prints them or in [ ] form; what the router cannot do without is filled in.

    Raises ConfigError with the line that is no ClassAd, or if there is no ad.
    """
    body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", "//")))
    ads = _from_new_form(body, source) if body.lstrip().startswith("[") else _from_long_form(text, source)
    if not ads and not may_be_empty:
        raise ConfigError(f"{source}: no job ad in it; `condor_q -long` prints one")
    return [_filled(ad, source if len(ads) == 1 else f"{source}#{number}") for number, ad in enumerate(ads, 1)]


def numbered(jobs: Sequence[JobAd]) -> list[JobAd]:
    """With an id of its own for every job: the router skips a second job of the same id."""
    taken: set[str] = set()
    unique = []
    for job in jobs:
        if job.id in taken:
            cluster = max(int(each.partition(".")[0]) for each in taken) + 1
            lines = [line for line in job.text.splitlines() if not re.match(r"(?i)(ClusterId|ProcId)\s*=", line)]
            text = "\n".join([*lines, f"ClusterId = {cluster}", "ProcId = 0"])
            unique.append(replace(job, id=f"{cluster}.0", text=text))
        else:
            unique.append(job)
        taken.add(unique[-1].id)
    return unique


def new_form(text: str) -> str:
    """A long-form ad as [ ] text. In the long form a backslash is a character like any other."""
    classad2 = bindings()
    return str(classad2.parseOne(text, classad2.ParserType.Old))


_LINE = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*=(?!=|[?!]=)\s*(?P<value>.*)")
_NEEDED = {"ClusterId": "1", "ProcId": "0", "JobStatus": "1", "JobUniverse": "5"}


def _from_long_form(text: str, source: str) -> list[str]:
    classad2 = bindings()
    ads: list[list[str]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        if not line.strip() or line.startswith("***"):
            ads.append([])
            continue
        if not _LINE.match(line):
            raise ConfigError(f'{source}, line {number}: not "Attribute = value" of a job ad: {line.strip()[:60]}')
        ads[-1].append(line.strip())
    texts = ["\n".join(lines) for lines in ads if lines]
    for ad in texts:
        # The parser ends at the first line that it cannot read, and says nothing.
        if len(classad2.parseOne(ad, classad2.ParserType.Old)) < len({name.lower() for name in attributes_of(ad)}):
            bad = next(line for line in ad.splitlines() if not len(classad2.parseOne(line, classad2.ParserType.Old)))
            raise ConfigError(f"{source}: not a ClassAd expression: {bad[:70]}")
    return texts


def _from_new_form(text: str, source: str) -> list[str]:
    classad2 = bindings()
    try:
        ads = list(classad2.parseAds(text, classad2.ParserType.New))
    except Exception as error:  # classad2 raises its own and Python's for one and the same mistake
        raise ConfigError(f"{source}: not ClassAds: {error}") from None
    left = re.sub(r'"(\\.|[^"\\])*"', "", text)
    if not ads or left.count("[") != left.count("]"):
        raise ConfigError(f"{source}: not ClassAds: an ad is not complete, or its brackets do not match")
    return ["\n".join(f"{name} = {_old_escapes(str(ad.lookup(name)))}" for name in ad) for ad in ads]


def _old_escapes(expression: str) -> str:
    """An expression for the long form, where only a quote is escaped."""
    return expression.replace("\\\\", "\\")


def _filled(text: str, source: str) -> JobAd:
    """The ad with what the router needs and it lacks; the CE's own schedd would have set all of it."""
    attributes = {name.lower(): value for name, value in attributes_of(text).items()}
    filled = [f"{name} = {value}" for name, value in _NEEDED.items() if name.lower() not in attributes]
    if "owner" not in attributes:
        user = re.fullmatch(r'"([^"@]+)@.*"', attributes.get("user", ""))
        filled.append(f"Owner = {classad_string(user[1] if user else 'nobody')}")
    cluster, proc = (attributes.get(name, default) for name, default in (("clusterid", "1"), ("procid", "0")))
    if not (cluster.isdecimal() and proc.isdecimal()):
        raise ConfigError(f"{source}: ClusterId = {cluster}, ProcId = {proc}: a job's id is two numbers")
    job = f"{int(cluster)}.{int(proc)}"
    label = source if "clusterid" not in attributes or not source.startswith("the CE") else job
    return JobAd(label.partition("#")[0] if label == job else label, job, "\n".join([text, *filled]), tuple(filled))


def attributes_of(text: str) -> dict[str, str]:
    lines = (_LINE.match(line) for line in text.splitlines())
    return {found["name"]: found["value"] for found in lines if found}


def attribute(attributes: Mapping[str, str], name: str) -> str:
    return next((value for key, value in attributes.items() if key.lower() == name.lower()), "")
