"""What a person sees: tables that fit, nothing lost in a narrow window, --watch that does not flicker, choices."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from rich.console import Console, Group, RenderableType

from htcebridge.cli import demand, output, pilots, pressure
from htcebridge.cli.choose import chosen
from htcebridge.config.tables import Config
from htcebridge.model import (
    Demand,
    Pilot,
    PilotPhase,
    Plan,
    ResourcePlan,
    ScheddAnswer,
    Shape,
    SlurmJob,
    Startd,
)
from htcebridge.model import Group as Jobs

Run = Callable[..., Any]
NOW = 1_800_000_000
SENTENCE = "(Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions)"


def drawn(picture: RenderableType, width: int = 100, height: int | None = None) -> list[str]:
    shown = Console(width=width, height=height, color_system=None, highlight=False)
    with shown.capture() as capture:
        shown.print(picture)
    return [line.rstrip() for line in capture.get().splitlines()]


def joined(number: int, resource: str = "dcgp", free: int = 12, jobs: int = 25) -> Pilot:
    id_ = f"24123456_{number}"
    job = SlurmJob(id_, resource, "p", "RUNNING", "None", "p", "q", "a", f"lrdn{number:04d}", NOW - 90000, NOW - 86400,
                   NOW + 34020, 120420)  # fmt: skip
    return Pilot(
        job, PilotPhase.JOINED, Startd(id_, "s", "m", Shape(112, 1), Shape(free, 1), jobs, NOW, accepting=True)
    )


def pending(number: int, reason: str, resource: str = "dcgp") -> Pilot:
    job = SlurmJob(f"24123456_{number}", resource, "p", "PENDING", reason, "p", "q", "a", "", NOW, None, None, 43200)
    return Pilot(job, PilotPhase.PENDING)


def group(owner: str, idle: int, **changes: Any) -> Jobs:
    shape = Shape(changes.pop("cpus", 8), 16000, 1, 1000)
    return Jobs(shape, 90061, owner, "a_vo", idle, 12, 100000, changes.pop("resources", ("dcgp",)), **changes)


# --------------------------------------------------------------------------- tables fit


def pictures(config: Config) -> Iterator[RenderableType]:
    long = "a_resource_whose_name_is_rather_long_for_a_table"
    fleet = [joined(number) for number in range(200)]
    fleet += [pending(200, SENTENCE), pending(201, "AssocMaxWallDurationPerJobLimit"), pending(202, "Priority", long)]
    yield pilots._picture(config, fleet, NOW)
    schedds = (ScheddAnswer("ce01", 0.1), ScheddAnswer("x" * 130, 20.0, "no answer in 20 s"))
    jobs = [group("cmspil001", 123456), group("an_account_" * 6, 5), group("x", 7, resources=("dcgp", long, "booster"))]
    jobs += [
        group(f"o{n}", 1, resources=(), why_not={"dcgp": f"{n} " + "asks for more than a node has " * 5})
        for n in range(40)
    ]
    yield demand._picture(config, Demand(tuple(jobs), schedds))
    reasons = ("1 new node for 18 more jobs", "Slurm: " + "QOS qos_lowprio allows 100 submitted jobs a user " * 4)
    yield pressure._picture(Plan({name: ResourcePlan(300, 200, 2, 3, 12, ("1",), reasons) for name in ("dcgp", long)}))
    yield pressure._picture(Plan({}, held="squeue failed (exit code 1): " + "Unable to contact slurm controller " * 6))


@pytest.mark.parametrize("width", [80, 100, 132])
def test_no_line_is_wider_than_the_terminal(config: Config, width: int) -> None:
    for picture in pictures(config):
        assert max(map(len, drawn(picture, width))) <= width


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_nothing_of_a_number_or_name_is_cut_off(config: Config, width: int) -> None:
    """Where a cell is too narrow its text goes on below: a number without its last digit is another number."""
    text = "".join("".join(drawn(demand._picture(config, Demand((group("cmspil001", 98765),), ())), width)).split())
    assert all(text.count(digit) >= 1 for digit in "98765")
    columns = [output.Column("count", number=True), output.Column("name", wraps=4)]
    listing = output.Listing("t", columns, [(("1234567890", ""), ("abcdefghij", ""))])
    text = "".join("".join(drawn(listing, 14)).split())
    assert set("1234567890abcdefghij") <= set(text)


def test_what_has_no_room_is_named(config: Config) -> None:
    fleet = [joined(1)]
    wide, narrow = drawn(pilots._picture(config, fleet, NOW), 132), drawn(pilots._picture(config, fleet, NOW), 70)
    assert not [line for line in wide if line.startswith("No room")]
    assert " ".join(wide[1].split()) == "pilot resource Slurm pool node or reason started ends left cpus busy jobs"
    assert "No room for: Slurm, started, ends, jobs" in narrow
    row = next(line for line in narrow if "24123456_1" in line)
    assert all(word in row for word in ("joined", "lrdn0001", "9h27m", "100/112"))


def test_a_sentence_of_slurms_stands_below_in_full(config: Config) -> None:
    lines = drawn(pilots._picture(config, [pending(1, SENTENCE), pending(2, SENTENCE), pending(3, "Priority")], NOW))
    text = " ".join(" ".join(lines).split())
    assert f"2 pilots: {SENTENCE}" in text
    assert "3 pilots: 3 pending." in text
    assert "1 pilot: Priority" not in text


def test_the_totals_of_the_pilots(config: Config) -> None:
    fleet = [joined(1), joined(2, free=112, jobs=0), pending(3, "Priority")]
    assert "3 pilots: 1 pending, 2 joined; 100 of 224 cpus busy with 25 jobs." in drawn(
        pilots._picture(config, fleet, NOW)
    )


def test_what_looks_like_markup_is_text(config: Config) -> None:
    why = {"dcgp": "asks [bold]much[/bold] of [/x]"}
    text = "\n".join(
        drawn(demand._picture(config, Demand((group("[red]me[/red]", 1, resources=(), why_not=why),), ())))
    )
    assert "[red]me[/red]" in text
    assert "asks [bold]much[/bold] of [/x]" in text


def test_a_long_list_of_reasons_ends_with_how_many_more(config: Config) -> None:
    jobs = tuple(group(f"o{number}", 1, resources=(), why_not={"dcgp": "too wide"}) for number in range(50))
    lines = drawn(demand._picture(config, Demand(jobs, ())))
    assert sum("not on dcgp" in line for line in lines) == 20
    assert "  ... and 30 more: --json has them all" in lines


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0s"), (0, "0s"), (47.4, "47s"), (720, "12m"), (35275, "9h47m"), (183599, "2d2h")]
)
def test_durations_are_brief(seconds: float, said: str) -> None:
    assert output.brief(seconds) == said


def test_a_pipe_gets_no_blanks_at_the_ends_of_lines(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    for picture in pictures(config):
        output.show(lambda picture=picture: picture, None)  # type: ignore[misc]
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]
    assert max(map(len, out.splitlines())) <= 100


def test_colour_only_repeats_what_words_say(config: Config) -> None:
    for picture in pictures(config):
        shown = Console(width=100, force_terminal=True, color_system="standard", highlight=False, no_color=True)
        with shown.capture() as capture:
            shown.print(picture)
        assert "\x1b[3" not in capture.get()


# --------------------------------------------------------------------------- --watch


def test_a_list_is_cut_so_that_what_stands_below_is_seen(config: Config) -> None:
    picture = Group(pilots._picture(config, [joined(number) for number in range(200)], NOW))
    output._cut_to_height(picture, Console(width=120, height=20))
    lines = drawn(picture, 120)
    assert len(lines) <= 20
    (more,) = [line for line in lines if line.startswith("... and ")]
    rows = sum("24123456_" in line for line in lines)
    assert more.startswith(f"... and {200 - rows} more")
    assert rows >= 10
    assert lines[-1].startswith("200 pilots: 200 joined")


@pytest.mark.parametrize("height", [1, 3, 5])
def test_a_window_that_is_far_too_low_is_no_endless_loop(config: Config, height: int) -> None:
    for picture in pictures(config):
        output._cut_to_height(Group(picture), Console(width=80, height=height))


WATCH = """
import itertools, sys
from htcebridge.cli import output
from htcebridge.errors import UnknownState
count = itertools.count(1)
def draw():
    number = next(count)
    if number == 2:
        raise UnknownState("the collector is silent")
    return output.Listing(f"frame {number}", [output.Column("name")], [((f"row {n}", ""),) for n in range(60)])
try:
    output.show(draw, 0.05)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_watch_writes_over_the_same_screen_and_never_clears_it() -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 100, 0, 0))
    # pytest-xdist gives its workers a size that is not this terminal's.
    env = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
    env["TERM"] = "xterm-256color"
    process = subprocess.Popen([sys.executable, "-c", WATCH], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    seen = b""

    def read_until(text: bytes, seconds: float = 20) -> None:
        nonlocal seen
        deadline = time.monotonic() + seconds
        while text not in seen and time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen += os.read(master, 65536)
                except OSError:
                    break

    try:
        read_until(b"frame 5")
        process.send_signal(signal.SIGINT)
        read_until(b"\x1b[?1049l")
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        os.close(master)
    assert (seen.count(b"\x1b[?1049h"), seen.count(b"\x1b[?1049l")) == (1, 1)
    # Neither "erase display" nor "erase line": each frame is written from the top left corner over the last one.
    assert b"\x1b[2J" not in seen
    assert b"\x1b[2K" not in seen
    frames = seen.split(b"\x1b[H")[1:]
    assert len(frames) >= 5
    assert b"unknown: the collector is silent" in seen
    # One line feed fewer than there are lines: one in the last line would scroll.
    assert [frame.count(b"\n") for frame in frames[1:-1]] == [11] * (len(frames) - 2)
    assert b"more: make the window higher" in seen


def test_watch_into_a_pipe_is_one_picture_after_the_other() -> None:
    with subprocess.Popen([sys.executable, "-c", WATCH], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(140)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    text = "".join(lines)
    assert "\x1b" not in text
    assert "frame 1\n" in text
    assert "unknown: the collector is silent\n" in text
    assert "frame 3\n" in text
    assert "row 59\n" in text


# --------------------------------------------------------------------------- --sort and --filter

ROWS = [
    {"owner": "cms1", "cpus": 8, "resources": ["dcgp", "booster"], "jobs": None},
    {"owner": "atlas", "cpus": 1, "resources": [], "jobs": 4},
    {"owner": "CMS2", "cpus": 64, "resources": ["booster"], "jobs": 40},
]
KEYS = ("owner", "cpus", "resources", "jobs")


def owners(filters: tuple[str, ...] = (), sort: str | None = None, reverse: bool = False) -> list[str]:
    return [str(row["owner"]) for row in chosen(ROWS, lambda row: row, KEYS, filters, sort, reverse)]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ((), ["cms1", "atlas", "CMS2"]),
        (("owner=cms*",), ["cms1", "CMS2"]),
        (("owner!=cms*",), ["atlas"]),
        (("cpus>=8",), ["cms1", "CMS2"]),
        (("cpus < 8",), ["atlas"]),
        (("cpus=8",), ["cms1"]),
        (("resources=booster", "cpus>8"), ["CMS2"]),
        (("resources=",), ["atlas"]),
        (("resources!=",), ["cms1", "CMS2"]),
        (("jobs>3",), ["atlas", "CMS2"]),
        (("jobs=",), ["cms1"]),
        (("owner=nobody",), []),
    ],
)
def test_filters(filters: tuple[str, ...], left: list[str]) -> None:
    assert owners(filters) == left


@pytest.mark.parametrize(
    ("sort", "reverse", "order"),
    [
        (None, False, ["cms1", "atlas", "CMS2"]),
        (None, True, ["CMS2", "atlas", "cms1"]),
        ("cpus", False, ["CMS2", "cms1", "atlas"]),
        ("cpus", True, ["atlas", "cms1", "CMS2"]),
        ("owner", False, ["atlas", "cms1", "CMS2"]),
        ("owner", True, ["CMS2", "cms1", "atlas"]),
        # None is no number: last, whichever way.
        ("jobs", False, ["CMS2", "atlas", "cms1"]),
        ("jobs", True, ["atlas", "CMS2", "cms1"]),
        ("resources", False, ["atlas", "CMS2", "cms1"]),
    ],
)
def test_the_order(sort: str | None, reverse: bool, order: list[str]) -> None:
    assert owners(sort=sort, reverse=reverse) == order


@pytest.mark.parametrize(
    ("filters", "sort", "says"),
    [
        (("colour=red",), None, "no key 'colour' here; there are: owner, cpus"),
        ((), "colour", "no key 'colour' here"),
        (("cpus",), None, "write KEY=VALUE"),
        (("cpus>many",), None, "'many' is no number"),
    ],
)
def test_a_wrong_choice_is_usage(filters: tuple[str, ...], sort: str | None, says: str) -> None:
    with pytest.raises(click.UsageError, match=says):
        owners(filters, sort)


@pytest.mark.parametrize("command", ["demand", "pilots"])
def test_a_wrong_key_is_said_before_anybody_is_asked(
    htcebridge_command: Run, tmp_path: Any, command: str, design_example: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(design_example)
    said = htcebridge_command("--config", path, command, "--sort", "colour")
    assert said.code == 2
    assert "no key 'colour' here; there are: " in said.err
