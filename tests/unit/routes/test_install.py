from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from htcebridge.errors import BridgeError, ConfigError, LockHeld
from htcebridge.routes import RouteFile, disk, log
from htcebridge.routes.accept import defined_routes
from htcebridge.routes.ce import CE
from htcebridge.routes.disk import Change
from htcebridge.routes.running import has_loaded

# HTCondor's default for LOCAL_CONFIG_DIR_EXCLUDE_REGEXP (23.9.6 and 25.14.1).
EXCLUDED = re.compile(
    r"^((\..*)|(.*\.pl)|(.*\.py)|(.*\.sh)|(.*~)|(#.*)|(.*\.rpmsave)|(.*\.rpmnew)|(.*\.dpkg-old)|(.*\.dpkg-dist)|(.*\.cfsaved))$"
)
# A JobRouterLog of 23.9.6: a reconfig, and what a transform that is not there makes of the next one.
LOG = """\
11/22/26 17:23:17 Got SIGHUP.  Re-reading config files.
11/22/26 17:23:17 main_config() called
11/22/26 17:23:17 Watching destination schedd (SCHEDD2): /var/spool/condor/job_queue.log
11/22/26 17:23:17 JobRouter: route HTCEBridge_leonardo_cms converted to :
\tNAME HTCEBridge_leonardo_cms
\tREQUIREMENTS (regexp("^cmspil.*$", Owner))
\tMaxIdleJobs = 500
11/22/26 17:23:17 JobRouter: route Condor_Pool converted to :
\tNAME Condor_Pool
\tTargetUniverse = 5
11/22/26 17:23:17 JobRouter Note: adding new route '[ Name = "HTCEBridge_leonardo_cms"; TargetUniverse = 5 ]'
11/22/26 17:23:17 Routes will be matched in this order: HTCEBridge_leonardo_cms, Condor_Pool
11/22/26 17:23:17 Routing jobs to schedd ce01.cr.example.org in pool tier1.cr.example.org:9618
11/22/26 17:23:17 JobRouter: Checking for candidate jobs. routing table is:
Route Name               Source      Submitted/Max        Idle/Max     Throttle Recent: Started Succeeded Failed
HTCEBridge_leonardo_cms  HTCEBridge_leonardo_cms      12/  10000       4/    500     none               0      0      0
Condor_Pool              Condor_Pool       0/  10000       0/   2000     none               0         0      0
11/22/26 17:23:19 JobRouter: Checking for candidate jobs. routing table is:
Route Name               Source      Submitted/Max        Idle/Max     Throttle Recent: Started Succeeded Failed
"""
BROKEN = """\
11/22/26 17:23:22 Got SIGHUP.  Re-reading config files.
11/22/26 17:23:22 ERROR: JOB_ROUTER_TRANSFORM_Nope not found
11/22/26 17:23:22 JobRouter: route Condor_Pool converted to :
\tNAME Condor_Pool
\tTargetUniverse = 5
"""
# What condor_job_router_info -config -diagnostic says of the same table.
TOOL = """\
route HTCEBridge_leonardo_cms converted to :
\tNAME HTCEBridge_leonardo_cms
\tREQUIREMENTS (regexp("^cmspil.*$", Owner))
\tMaxIdleJobs = 500

route Condor_Pool converted to :
\tNAME Condor_Pool
\tTargetUniverse = 5
Note: adding new route '[ Name = "Condor_Pool"; TargetUniverse = 5 ]'
Routes will be matched in this order: HTCEBridge_leonardo_cms, Condor_Pool
"""
OURS = ["HTCEBridge_leonardo_cms"]


@pytest.fixture
def config_d(tmp_path: Path) -> Path:
    directory = tmp_path / "config.d"
    directory.mkdir()
    return directory


def change(directory: Path, name: str, text: str) -> Change:
    return Change("ce", directory, disk.find(directory, EXCLUDED), RouteFile("ce", name, text))


def removal(directory: Path) -> Change:
    return Change("ce", directory, disk.find(directory, EXCLUDED), None)


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


# --------------------------------------------------------------------------- the log


def test_a_table_is_read_from_the_log_as_from_the_tool() -> None:
    (logged,), (tool,) = log.parse_tables(LOG), log.parse_tables(TOOL)
    assert logged.order == ("HTCEBridge_leonardo_cms", "Condor_Pool")
    assert (logged.order, logged.texts) == (tool.order, tool.texts)
    assert logged.time is not None
    assert tool.time is None
    assert logged.agrees(tool, OURS)


@pytest.mark.parametrize("header", ["(pid:744) ", "(D_ALWAYS) ", "(cid:3) (D_ALWAYS:2) (pid:7) "])
def test_what_debug_levels_put_into_a_line_does_not_matter(header: str) -> None:
    text = re.sub(r"^(\S+ \S+) (?=JobRouter|Routes)", rf"\1 {header}", LOG, flags=re.MULTILINE)
    (table,) = log.parse_tables(text)
    assert table == log.parse_tables(LOG)[0]


def test_a_table_that_was_not_taken_is_none_and_the_log_says_why() -> None:
    assert log.parse_tables(BROKEN) == []
    assert log.refuses(BROKEN)
    assert log.complaints(BROKEN) == ["11/22/26 17:23:22 ERROR: JOB_ROUTER_TRANSFORM_Nope not found"]


def test_what_the_router_writes_of_every_job_since_25_13_is_no_refusal() -> None:
    noise = "11/22/26 17:49:16 ERROR in transform Base : \n11/22/26 17:49:16 ERROR in route Condor_Pool :\n"
    assert not log.refuses(noise)
    assert log.complaints(noise) == []
    real = "11/22/26 17:49:16 ERROR in transform Base : SET Requirements invalid expression\n"
    assert log.complaints(real) == [real.strip()]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MaxIdleJobs = 500", "MaxIdleJobs = 7"),
        ("order: HTCEBridge_leonardo_cms, Condor_Pool", "order: Condor_Pool, HTCEBridge_leonardo_cms"),
        ("order: HTCEBridge_leonardo_cms, Condor_Pool", "order: Condor_Pool"),
    ],
)
def test_another_text_another_order_or_a_lost_route_is_another_table(old: str, new: str) -> None:
    (wanted,), (found,) = log.parse_tables(TOOL), log.parse_tables(LOG.replace(old, new))
    assert not found.agrees(wanted, OURS)


def test_a_route_that_should_be_gone_and_is_not_is_another_table() -> None:
    (wanted,), (found,) = (
        log.parse_tables(TOOL.replace("order: HTCEBridge_leonardo_cms, ", "order: ")),
        log.parse_tables(LOG),
    )
    assert not found.agrees(wanted, OURS)
    assert found.agrees(wanted, [])


def test_a_route_that_only_the_daemon_has_does_no_harm() -> None:
    (wanted,) = log.parse_tables(TOOL)
    (found,) = log.parse_tables(LOG.replace("order: ", "order: Special, "))
    assert found.agrees(wanted, OURS)


def test_a_table_from_before_the_file_is_not_loaded() -> None:
    (table,), (wanted,) = log.parse_tables(LOG), log.parse_tables(TOOL)
    assert table.time is not None
    assert has_loaded(table, wanted, OURS, table.time - 0.5)
    assert not has_loaded(table, wanted, OURS, table.time + 0.5)
    assert not has_loaded(None, wanted, OURS, 0)


def test_jobs_are_counted_from_the_last_complete_table() -> None:
    counts = log.parse_counts(LOG)
    assert counts == {
        "HTCEBridge_leonardo_cms": log.Count(12, 10000, 4, 500),
        "Condor_Pool": log.Count(0, 10000, 0, 2000),
    }
    assert log.parse_counts(BROKEN) == {}


def test_what_is_new_in_a_log_is_found_over_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "JobRouterLog"
    start = log.mark(path)
    path.write_text("one\n")
    assert log.since(path, start) == "one\n"
    start = log.mark(path)
    with path.open("a") as file:
        file.write("two\n")
    assert log.since(path, start) == "two\n"
    path.rename(tmp_path / "JobRouterLog.old")
    path.write_text("three\n")
    assert log.since(path, start) == "two\nthree\n"
    assert log.whole(path) == "one\ntwo\nthree\n"


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "JobRouterLog").mkdir()
    with pytest.raises(BridgeError, match="JobRouterLog: cannot be read"):
        log.whole(tmp_path / "JobRouterLog")


# --------------------------------------------------------------------------- our files


def test_a_file_is_ours_until_somebody_edits_it(config_d: Path) -> None:
    path = config_d / "60-htcebridge.conf"
    disk.carry_out(change(config_d, path.name, "A = 1\n"))
    found = disk.read(path)
    assert found is not None
    assert (found.intact, found.body) == (True, "A = 1\n")
    path.write_text(path.read_text().replace("A = 1", "A = 2"))
    edited = disk.read(path)
    assert edited is not None
    assert not edited.intact
    with pytest.raises(ConfigError, match="edited by hand"):
        disk.refuse_what_is_not_ours(change(config_d, path.name, "A = 1\n"))
    with pytest.raises(ConfigError, match="edited by hand"):
        disk.refuse_what_is_not_ours(removal(config_d))


@pytest.mark.parametrize("text", ["", "# by hand\n", "# Installed by htcebridge 1, sha256 abc. \nA = 1\n", "\xff"])
def test_other_files_are_not_ours(config_d: Path, text: str) -> None:
    path = config_d / "60-htcebridge.conf"
    path.write_bytes(text.encode("latin-1"))
    assert disk.read(path) is None
    with pytest.raises(ConfigError, match="not written by"):
        disk.refuse_what_is_not_ours(change(config_d, path.name, "A = 1\n"))


def test_a_link_is_not_ours_even_if_what_it_leads_to_is(config_d: Path) -> None:
    (config_d.parent / "real").write_text(disk.sealed(RouteFile("ce", "x", "A = 1\n")))
    (config_d / "60-htcebridge.conf").symlink_to(config_d.parent / "real")
    with pytest.raises(ConfigError, match="not written by"):
        disk.refuse_what_is_not_ours(change(config_d, "60-htcebridge.conf", "A = 1\n"))


def test_a_copy_that_htcondor_would_read_is_refused_and_one_that_it_skips_is_not(config_d: Path) -> None:
    (config_d / "60-htcebridge.conf").write_text(disk.sealed(RouteFile("ce", "x", "A = 1\n")))
    (config_d / "60-htcebridge.conf~").write_text(disk.sealed(RouteFile("ce", "x", "A = 1\n")))
    assert disk.find(config_d, EXCLUDED) is not None
    (config_d / "60-htcebridge.conf.bak").write_text(disk.sealed(RouteFile("ce", "x", "A = 1\n")))
    with pytest.raises(ConfigError, match="move the copy away"):
        disk.find(config_d, EXCLUDED)


def test_the_version_alone_is_no_change(config_d: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "__version__", "0.0.1")
    disk.carry_out(change(config_d, "60-htcebridge.conf", "A = 1\n"))
    monkeypatch.undo()
    assert not change(config_d, "60-htcebridge.conf", "A = 1\n").is_one
    assert change(config_d, "60-htcebridge.conf", "A = 2\n").is_one
    assert change(config_d, "61-htcebridge.conf", "A = 1\n").is_one


def test_htcondor_does_not_read_a_file_under_its_temporary_name() -> None:
    assert EXCLUDED.match(disk.temporary_name("60-htcebridge.conf"))
    assert not EXCLUDED.match("60-htcebridge.conf")


def test_a_sides_files_become_one_in_the_order_of_their_names() -> None:
    made = disk.one_file_per_side(
        [RouteFile("ce", "70-b", "B\n"), RouteFile("pool", "50-p", "P\n"), RouteFile("ce", "60-a", "A\n")]
    )
    assert made == {"ce": RouteFile("ce", "60-a", "A\n\nB\n"), "pool": RouteFile("pool", "50-p", "P\n")}


class Killed(BaseException):
    """Stands for kill -9: no handler of the code under test runs on it."""


@pytest.mark.parametrize("name", ["60-htcebridge.conf", "61-other.conf"], ids=["same name", "new name"])
@pytest.mark.parametrize("back", [False, True], ids=["forwards", "backwards"])
def test_at_every_step_one_whole_file_is_read(
    config_d: Path, monkeypatch: pytest.MonkeyPatch, name: str, back: bool
) -> None:
    disk.carry_out(change(config_d, "60-htcebridge.conf", "old\n"))
    wanted = change(config_d, name, "new\n")
    if back:
        disk.carry_out(wanted)
    seen = []

    def look(*_: object) -> None:
        read = [text for file, text in content(config_d).items() if not EXCLUDED.match(file)]
        assert len(read) == 1
        seen.append(read[0].partition("\n")[2])

    def call(source: Path, target: Path) -> None:
        look()
        real(source, target)
        look()

    real = os.replace
    monkeypatch.setattr(os, "replace", call)
    (disk.undo if back else disk.carry_out)(wanted)
    monkeypatch.undo()
    assert set(seen) == {"old\n", "new\n"}
    end = "60-htcebridge.conf" if back else name
    assert {file: text.partition("\n")[2] for file, text in content(config_d).items()} == {
        end: "old\n" if back else "new\n"
    }


def test_undo_brings_back_every_byte(config_d: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "__version__", "0.0.1")
    disk.carry_out(change(config_d, "60-htcebridge.conf", "old\n"))
    monkeypatch.undo()
    before = content(config_d)
    for wanted in (change(config_d, "61-htcebridge.conf", "new\n"), removal(config_d)):
        disk.carry_out(wanted)
        assert content(config_d) != before
        disk.undo(wanted)
        assert content(config_d) == before


def test_undo_of_a_first_installation_leaves_nothing(config_d: Path) -> None:
    wanted = change(config_d, "60-htcebridge.conf", "new\n")
    disk.carry_out(wanted)
    disk.undo(wanted)
    disk.undo(wanted)
    assert content(config_d) == {}


def test_a_disk_that_is_full_leaves_the_old_file_and_no_other(config_d: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.carry_out(change(config_d, "60-htcebridge.conf", "old\n"))
    before = content(config_d)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.carry_out(change(config_d, "60-htcebridge.conf", "new\n"))
    assert content(config_d) == before


def test_the_earlier_sets_are_kept_and_the_oldest_dropped(config_d: Path) -> None:
    state = config_d.parent / "htcebridge"
    state.mkdir()
    for number in range(disk.KEPT_SETS + 2):
        wanted = change(config_d, "60-htcebridge.conf", f"A = {number}\n")
        disk.keep(state, [wanted])
        disk.carry_out(wanted)
    kept = sorted((state / "previous").iterdir())
    assert len(kept) == disk.KEPT_SETS
    newest = (kept[-1] / "ce" / "60-htcebridge.conf").read_text()
    assert newest == disk.sealed(RouteFile("ce", "x", f"A = {disk.KEPT_SETS}\n"))


def test_the_newest_set_is_the_last_one_at_the_turn_of_a_second_too(
    config_d: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = config_d.parent / "htcebridge"
    state.mkdir()
    turn = 1_800_000_000 * 10**9
    kept = []
    for now in (turn - 1, turn, turn + 1):
        monkeypatch.setattr(disk.time, "time_ns", lambda now=now: now)
        kept.append(disk.keep(state, [change(config_d, "60-htcebridge.conf", "A = 1\n")]))
    assert sorted(kept) == kept


def test_what_a_killed_run_left_is_tidied_up(config_d: Path) -> None:
    state = config_d.parent / "htcebridge"
    (state / "previous.new" / "ce").mkdir(parents=True)
    (config_d / disk.temporary_name("60-htcebridge.conf")).write_text("half")
    (config_d / ".somebody-else").write_text("theirs")
    disk.tidy(state, [config_d])
    assert content(config_d) == {".somebody-else": "theirs"}
    assert list(state.iterdir()) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        disk.locked(tmp_path / "state"),
        pytest.raises(LockHeld, match=f"pid {os.getpid()}"),
        disk.locked(tmp_path / "state"),
    ):
        pass
    with disk.locked(tmp_path / "state"):
        pass


def test_a_place_that_cannot_be_written_is_the_admins_to_mend(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigError, match="run this as root"), disk.locked(tmp_path / "state"):
        pass
    assert isinstance(disk.not_written(tmp_path, PermissionError(13, "Permission denied")), ConfigError)
    full = disk.not_written(tmp_path, OSError(28, "No space left on device"))
    assert not isinstance(full, ConfigError)
    assert "as root" not in str(full)


def test_routes_are_known_from_their_definitions() -> None:
    text = "JOB_ROUTER_ROUTE_A @=jrt\n@jrt\nJOB_ROUTER_ROUTE_NAMES = A $(JOB_ROUTER_ROUTE_NAMES)\n"
    text += "JOB_ROUTER_ROUTE_NAMESAKE = x\n"
    assert defined_routes([text, text]) == ["A", "NAMESAKE"]


@pytest.mark.parametrize(
    ("said", "ok"),
    [
        ("$CondorVersion: 25.14.1 2026-09-24 BuildID: x $", True),
        ("$CondorVersion: 23.9.6 2026-07-12 $", True),
        ("$CondorVersion: 10.9.0 2023-09-28 $", False),
        ("", False),
    ],
)
def test_an_old_htcondor_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, ok: bool
) -> None:
    tool = tmp_path / "condor_version"
    tool.write_text(f"#!/bin/sh\nprintf '%s\\n' '{said}'\n")
    tool.chmod(0o755)
    config = tmp_path / "condor_config"
    config.write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if ok:
        assert CE(config).version() == said
    else:
        with pytest.raises(ConfigError, match="HTCondor 23 or newer is needed"):
            CE(config).version()
