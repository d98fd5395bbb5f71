"""What Prometheus is told of a cycle: parsed back as Prometheus would, whatever was seen."""

from __future__ import annotations

import base64
import json
import math
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import htcebridge
from htcebridge.cli import pressure
from htcebridge.config.tables import Config
from htcebridge.controller import cycle as controller_cycle
from htcebridge.controller import loop
from htcebridge.history.result import CycleResult
from htcebridge.history.usage import HELD, Use, Used
from htcebridge.metrics import export
from htcebridge.metrics.table import LABELS, NOBODY, OTHER, SHAPES, TABLE
from htcebridge.model import (
    Cap,
    Cut,
    Demand,
    Group,
    Outcome,
    Pilot,
    PilotPhase,
    Shape,
)
from htcebridge.plan import planner
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import Memory, Records, Upkeep
from tests.made_cycles import CONFIG, LIMITS, NOW, group, names, parsed, pilot, result, situation


def shown(config: Config, cycle: CycleResult, **expiries: int) -> Callable[..., float | None]:
    series = parsed(export.render(config, cycle, {(token, ""): when for token, when in expiries.items()}))

    def value(name: str, **labels: str) -> float | None:
        return series.get((f"htcebridge_{name}", frozenset(labels.items())))

    return value


# --------------------------------------------------------------------------- what is shown


def test_a_cycle_in_numbers(config: Config) -> None:
    seen = situation(
        pilot(PilotPhase.PENDING),
        pilot(PilotPhase.BOOTING),
        pilot(PilotPhase.JOINED, {"cms": 16}),
        pilot(PilotPhase.JOINED, {}, draining=True),
        pilot(PilotPhase.ENDED),
        groups=(group(), group(cpus=1, resources=(), oldest_s=90), group(cpus=12, idle=0), group("stranger", 64)),
    )
    value = shown(config, result(seen), controller=NOW + 86400)
    assert value("build_info", version=htcebridge.__version__) == 1
    assert value("held") == 0
    assert value("stopped") == 0
    assert value("last_cycle_timestamp_seconds") == NOW + 1
    assert value("last_success_timestamp_seconds") == NOW
    assert value("last_cycle_duration_seconds") == 2.5
    assert value("last_cycle_problems") == 1
    assert value("token_expiration_timestamp_seconds", token="controller", resource="") == NOW + 86400
    assert value("schedds", state="silent") == value("schedds", state="answering") == 1

    assert value("demand_jobs", vo="cms", shape="5-8", state="idle") == 4
    assert value("demand_cores", vo="cms", shape="5-8", state="idle") == 32
    assert value("demand_cores", vo="cms", shape="9-16", state="running") == 24
    assert value("demand_jobs", vo="cms", shape="2-4", state="idle") == 0
    assert value("demand_jobs", vo=OTHER, shape="17+", state="idle") == 4
    assert value("demand_unmatched_jobs", vo="cms") == 4
    assert value("demand_oldest_wait_seconds", vo="cms") == 600

    states = {state: value("pilots", resource="dcgp", state=state) for state in PilotPhase}
    assert states == {"pending": 1, "booting": 1, "joined": 2, "lost": 0, "leaving": 0, "ended": None}
    assert value("draining_pilots", resource="dcgp") == 1
    assert value("needed_pilots", resource="dcgp") == 3
    assert value("max_running_pilots", resource="dcgp") == 100
    assert value("quarantined_nodes", resource="dcgp") == 1
    assert value("cut_pilots", resource="dcgp", reason="stuck") == 2
    assert value("cut_pilots", resource="dcgp", reason="budget") == 0

    cores = {use: value("cores", resource="dcgp", vo=NOBODY, use=use) for use in HELD if use is not Use.BUSY}
    assert cores == {"boot": 112, "idle": 0, "fragmentation": 96, "tail": 0, "drained": 112, "elsewhere": 0}
    assert value("cores", resource="dcgp", vo="cms", use="busy") == 16


def test_what_was_counted_over_the_controllers_life(config: Config) -> None:
    value = shown(config, result(None))
    assert value("cycles_total", result="ok") == 7
    assert value("cycles_total", result="problem") == 0
    assert value("calls_total", call="tier1 pool") == 9
    assert value("pilots_submitted_total", resource="dcgp") == 12
    assert value("pilots_cancelled_total", resource="dcgp") == 0
    assert value("plan_cuts_total", resource="dcgp", reason="stuck") == 4
    assert value("pilots_ended_total", resource="dcgp", outcome="never_joined") == 1
    assert value("pilots_ended_total", resource="dcgp", outcome="node_failed") == 0
    assert value("core_seconds_total", resource="dcgp", vo="cms", use="busy") == 1000
    assert value("core_seconds_total", resource="dcgp", vo=OTHER, use="busy") == 10
    assert value("core_seconds_total", resource="dcgp", vo=NOBODY, use="boot") == 200
    assert value("core_seconds_total", resource="dcgp", vo=NOBODY, use="tail") == 0
    assert value("core_seconds_total", resource="dcgp", vo="cms", use="lost") == 300
    assert value("pilot_queue_duration_seconds_sum", resource="dcgp") == 360
    assert value("pilot_queue_duration_seconds_count", resource="dcgp") == 3
    assert value("pilot_boot_duration_seconds_sum", resource="dcgp") == 90


@pytest.mark.parametrize(
    ("cpus", "gpus", "shape"),
    [
        (0, 0, "1"),
        (1, 0, "1"),
        (2, 0, "2-4"),
        (4, 0, "2-4"),
        (5, 0, "5-8"),
        (16, 0, "9-16"),
        (17, 0, "17+"),
        (1, 2, "gpu"),
    ],
)
def test_a_jobs_shape_is_one_of_a_few_words(config: Config, cpus: int, gpus: int, shape: str) -> None:
    value = shown(config, result(situation(groups=(group(shape=Shape(cpus, 2000, gpus)),))))
    assert {each: value("demand_jobs", vo="cms", shape=each, state="idle") for each in SHAPES if each != shape} == {
        each: 0 for each in SHAPES if each != shape
    }
    assert value("demand_jobs", vo="cms", shape=shape, state="idle") == 4


def test_a_vo_is_known_however_it_is_written(config: Config) -> None:
    value = shown(config, result(situation(groups=(group("CMS"), group("cms")))))
    assert value("demand_jobs", vo="cms", shape="5-8", state="idle") == 8


def test_a_limit_that_lets_nobody_in_is_shown_though_nothing_waits(config: Config) -> None:
    caps = (Cap("", 0, "why", kind=Cut.DISABLED), Cap("", 3, "why", kind=Cut.RATE))
    value = shown(config, result(situation(limits={"dcgp": replace(LIMITS, caps=caps)})))
    assert value("resource_blocked", resource="dcgp", reason="disabled") == 1
    assert value("resource_blocked", resource="dcgp", reason="rate") == 0


def test_pilots_of_a_resource_that_is_not_configured_any_more_are_others(config: Config) -> None:
    totals = {"outcome|old|ran": 2, "outcome|older|ran": 3, "outcome|dcgp|renamed": 1}
    seen = situation(pilot(PilotPhase.JOINED, {"cms": 8}, resource="old"))
    value = shown(config, result(seen, totals=totals, core_s={("old", "cms", Use.BUSY): 5}))
    assert value("pilots", resource=OTHER, state="joined") == 1
    assert value("pilots_ended_total", resource=OTHER, outcome="ran") == 5
    assert value("pilots_ended_total", resource="dcgp", outcome=OTHER) == 1
    assert value("core_seconds_total", resource=OTHER, vo="cms", use="busy") == 5
    assert value("cores", resource=OTHER, vo="cms", use="busy") == 8


# --------------------------------------------------------------------------- what is not


def test_a_held_cycle_says_so_and_nothing_of_what_it_did_not_see(config: Config) -> None:
    text = export.render(config, result(None, planner.hold("Slurm is silent", config.resources)))
    said = names(text)
    assert parsed(text)["htcebridge_held", frozenset()] == 1
    assert not {name for name in said if "demand" in name or name.endswith(("pilots", "cores", "schedds", "stopped"))}
    assert "htcebridge_pilots_ended_total" in said, "what was counted is still known"


def test_the_kill_switch_hides_what_nobody_looks_at_then(config: Config) -> None:
    seen = situation(pilot(PilotPhase.LOST), pilot(PilotPhase.PENDING), demand=Demand((), ()), stop="by hand")
    value = shown(config, result(seen))
    assert value("stopped") == 1
    assert value("pilots", resource="dcgp", state="pending") == 1
    assert value("pilots", resource="dcgp", state="lost") is None
    assert value("demand_jobs", vo="cms", shape="1", state="idle") is None
    assert value("cores", resource="dcgp", vo=NOBODY, use="boot") is None
    assert value("needed_pilots", resource="dcgp") is None
    assert value("schedds", state="silent") is None


def test_a_first_cycle_that_failed_exports_no_time_and_no_count(config: Config) -> None:
    failed = CycleResult(planner.hold("it broke", config.resources), "", ("it broke",))
    assert names(export.render(config, failed)) == {
        "htcebridge_build_info",
        "htcebridge_held",
        "htcebridge_last_cycle_problems",
    }


def test_a_cycle_that_fails_does_not_set_the_counters_back(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from htcebridge.state.memory import remember

    with ControllerLock(config) as lock:
        remember(config, Memory(upkeep=Upkeep(looked=NOW), records=Records(totals={"cycles|ok": 7})))
        monkeypatch.setattr(controller_cycle, "look", lambda _: 1 / 0)
        failed = loop._surviving_cycle(config, lock, None)
    value = shown(config, failed)
    assert value("cycles_total", result="ok") == 7
    assert value("last_cycle_timestamp_seconds") == NOW
    assert value("held") == 1


# --------------------------------------------------------------------------- whatever is seen

words = st.sampled_from(["cms", "CMS", "atlas", "", 'x"y\\', "a|b", "a\nb", "ü"]) | st.text(max_size=8)
resources = st.sampled_from(["dcgp", "booster", "old", "busy", ""])
numbers = st.integers(0, 10**9)
groups_ = st.builds(
    lambda vo, cpus, gpus, idle, running: group(vo, cpus, idle, running, shape=Shape(cpus, 1, gpus)),
    words, st.integers(0, 300), st.integers(0, 2), numbers, numbers,
)  # fmt: skip
pilots_ = st.builds(
    pilot, st.sampled_from(PilotPhase), st.none() | st.dictionaries(words, st.integers(0, 9), max_size=3), resources
)
totals_ = st.dictionaries(
    st.one_of(
        st.builds("outcome|{}|{}".format, resources, st.sampled_from(Outcome)),
        st.builds("cut|{}|{}".format, resources, st.sampled_from(Cut)),
        st.builds("booted_s|{}".format, resources),
    ),
    st.floats(0, 1e15),
)


core_s_ = st.none() | st.dictionaries(st.tuples(resources, words, st.sampled_from(Use)), st.integers(0, 10**15))


@given(st.lists(groups_, max_size=5), st.lists(pilots_, max_size=5), totals_, core_s_, st.booleans())
def test_labels_are_bounded_and_numbers_are_numbers(
    groups: list[Group], pilots: list[Pilot], totals: dict[str, float], core_s: Used | None, stopped: bool
) -> None:
    seen = situation(*pilots, groups=tuple(groups), stop="x" if stopped else None)
    vos = {*(vo.name for vo in CONFIG.vos), OTHER, NOBODY}
    allowed = {"vo": vos, "resource": {*CONFIG.resources, OTHER}, "shape": set(SHAPES), "use": set(Use)}
    for (name, labels), number in parsed(export.render(CONFIG, result(seen, totals=totals, core_s=core_s))).items():
        assert math.isfinite(number), name
        for label, value in labels:
            assert value in allowed.get(label, {value}), (name, label, value)


@given(st.lists(pilots_, max_size=5))
def test_every_pilot_that_has_not_ended_is_in_one_state(pilots: list[Pilot]) -> None:
    series = parsed(export.render(CONFIG, result(situation(*pilots))))
    counted = sum(number for (name, _), number in series.items() if name == "htcebridge_pilots")
    assert counted == sum(each.phase is not PilotPhase.ENDED for each in pilots)


# --------------------------------------------------------------------------- the table


def test_the_table_names_each_metric_once_and_explains_each_label() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    assert {label for metric in TABLE for label in metric.labels} | {"controller"} == set(LABELS)
    for metric in TABLE:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.says.endswith(".")


# --------------------------------------------------------------------------- tokens


def token(path: Path, expires: int | None) -> Path:
    claims = {"exp": expires} if expires is not None else {}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"e30.{body}.c2ln", encoding="ascii")
    path.chmod(0o600)
    return path


def test_the_first_token_to_expire_is_shown_and_what_is_no_token_is_not(own_home: Path, config: Config) -> None:
    assert export.token_expiries(config) == {}
    token(own_home / ".condor/tokens.d/a", NOW + 5)
    token(own_home / ".condor/tokens.d/b", NOW + 3)
    token(own_home / ".condor/tokens.d/c", None)
    (own_home / ".condor/tokens.d/d").write_text("not a token")
    token(own_home / ".config/htcebridge/pilot.idtoken", NOW + 9)
    expiries = export.token_expiries(config)
    assert expiries == {("controller", ""): NOW + 3, ("pilot", "dcgp"): NOW + 9}
    text = export.render(config, result(None), expiries)
    assert str(own_home).encode() not in text
    assert b"e30." not in text


# --------------------------------------------------------------------------- the file for node_exporter


@pytest.fixture
def written(load: Callable[[str], Config], design_example: str, tmp_path: Path) -> Config:
    return load(f'{design_example}\n[metrics]\ntextfile_directory = "{tmp_path}/textfile"\n')


def test_the_textfile_is_whole_readable_and_alone(written: Config, tmp_path: Path) -> None:
    directory = tmp_path / "textfile"
    directory.mkdir()
    (directory / "htcebridge-leonardo.prom.new").write_text("left by a controller that was killed")
    umask = os.umask(0o077)
    try:
        assert export.write_textfile(written, result(situation())) == []
    finally:
        os.umask(umask)
    (file,) = directory.iterdir()
    assert file.name == "htcebridge-leonardo.prom"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert file.read_bytes() == export.render(written, result(situation()))
    assert file.read_bytes().endswith(b"\n")


def test_no_directory_configured_no_file(config: Config) -> None:
    assert export.write_textfile(config, result(situation())) == []


def test_a_missing_directory_is_a_sentence(written: Config, tmp_path: Path) -> None:
    (said,) = export.write_textfile(written, result(situation()))
    assert said == (
        f"metrics are not written: {tmp_path}/textfile: no such directory; make it, or mend metrics.textfile_directory"
    )


def test_a_directory_that_is_a_file_is_a_sentence_and_the_old_metrics_stay(written: Config, tmp_path: Path) -> None:
    (tmp_path / "textfile").write_text("x")
    (said,) = export.write_textfile(written, result(situation()))
    assert said == f"metrics are not written: {tmp_path}/textfile: Not a directory; look at its owner, mode and disk"


def test_a_full_disk_leaves_the_old_file(written: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "textfile"
    directory.mkdir()
    assert export.write_textfile(written, result(situation())) == []
    before = (directory / "htcebridge-leonardo.prom").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    (said,) = export.write_textfile(written, result(None))
    assert "No space left on device" in said
    assert [path.name for path in directory.iterdir()] == ["htcebridge-leonardo.prom"]
    assert (directory / "htcebridge-leonardo.prom").read_bytes() == before


def test_an_unset_variable_in_the_directory_is_a_sentence(load: Callable[[str], Config], design_example: str) -> None:
    config = load(f'{design_example}\n[metrics]\ntextfile_directory = "$NO_SUCH/x"\n')
    (said,) = export.write_textfile(config, result(situation()))
    assert "metrics.textfile_directory" in said
    assert "not set" in said


# --------------------------------------------------------------------------- the last cycle, for a web server


def test_the_latest_cycle_is_whole_whoever_asks_meanwhile(config: Config) -> None:
    latest = export.Latest()
    assert latest.metrics() == b""
    ending = threading.Event()
    wrong: list[bytes] = []
    expected = {number: export.render(config, result(situation(), looked=number)) for number in (1, 2)}

    def ask() -> None:
        while not ending.is_set():
            said = latest.metrics()
            if said and said not in expected.values():
                wrong.append(said)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in (1, 2) * 20:
        latest.update(config, result(situation(), looked=number))
    ending.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert latest.metrics() == expected[2]


def test_metrics_that_break_do_not_end_the_controller(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "write_textfile", lambda *_: 1 / 0)
    assert loop._shown(config, result(situation()), export.Latest()) == ["metrics are not written: division by zero"]
    assert "Traceback" in caplog.text


def test_once_says_that_the_file_is_not_written_and_ends_with_1(
    written: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, htcebridge_command: Callable[..., object]
) -> None:
    monkeypatch.setattr(controller_cycle, "cycle", lambda *_: replace(result(situation()), problems=()))
    monkeypatch.setattr(pressure.cycle, "wait_for_min_interval", lambda _: None)
    said = htcebridge_command("--config", tmp_path / "htcebridge.toml", "pressure", "once")
    assert said.code == 1, said  # type: ignore[attr-defined]
    assert "no such directory" in said.err  # type: ignore[attr-defined]
    (tmp_path / "textfile").mkdir()
    said = htcebridge_command("--config", tmp_path / "htcebridge.toml", "pressure", "once")
    assert said.code == 0, said  # type: ignore[attr-defined]
    assert "no such directory" not in said.err  # type: ignore[attr-defined]
    assert (tmp_path / "textfile" / "htcebridge-leonardo.prom").is_file()
