"""Which maintenance touches a partition, from what scontrol prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.errors import UnknownState
from htcebridge.slurm.reservations import Maintenance, expand_hosts, parse_maintenances

OURS = {"PartitionName": "dcgp_usr_prod", "Nodes": "lrdn[0001-0003]"}
NONE = "No reservations in the system\n"


def record(
    name: str = "maint",
    nodes: str = "lrdn[0001-0003],lrdn1001",
    flags: str = "MAINT,IGNORE_JOBS",
    start: str = "1800000000",
    comment: str = "(null)",
) -> str:
    return (
        f"ReservationName={name} StartTime={start} EndTime=1800003600 Duration=01:00:00 Nodes={nodes} NodeCnt=4 "
        f"CoreCnt=368 Features=(null) PartitionName=(null) Flags={flags} TRES=cpu=368 Users=root Groups=(null) "
        f"Accounts=(null) Licenses=(null) State=INACTIVE BurstBuffer=(null) MaxStartDelay=(null) Comment={comment}\n"
    )


def found(output: str) -> list[tuple[str, bool]]:
    return [(each.name, each.whole) for each in parse_maintenances(output, OURS)]


def test_a_maintenance_of_all_nodes_of_a_partition_is_read() -> None:
    assert parse_maintenances(record(), OURS) == (Maintenance("maint", 1_800_000_000, 1_800_003_600, whole=True),)


def test_no_reservation_is_none() -> None:
    assert parse_maintenances(NONE, OURS) == ()


@pytest.mark.parametrize(
    ("output", "read"),
    [
        (record(flags="SPEC_NODES"), []),
        (record(nodes="lrdn[1001-1004]"), []),
        (record(nodes="(null)"), []),
        (record(nodes="lrdn[0002-0009]"), [("maint", False)]),
        (record(nodes="lrdn[1001-1004]", flags="MAINT,ALL_NODES"), [("maint", True)]),
        (record(nodes="lrdn[1-"), [("maint", True)]),
        (record("a") + record("b", flags="") + record("c", nodes="lrdn0001"), [("a", True), ("c", False)]),
        (record(comment="Flags=NONE StartTime=1\nReservation=no\n\n"), [("maint", True)]),
    ],
)  # fmt: skip
def test_only_maintenances_of_our_nodes_count(output: str, read: list[tuple[str, bool]]) -> None:
    assert found(output) == read


@pytest.mark.parametrize(
    "said", ["", "\n", "Welcome\n", "slurm_load_reservations error\n", record(start="soon"), "ReservationName=x\n"]
)
def test_what_scontrol_does_not_say_is_unknown(said: str) -> None:
    with pytest.raises(UnknownState, match="scontrol show reservation said something else"):
        parse_maintenances(said, OURS)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lrdn0001", {"lrdn0001"}),
        ("lrdn[0009-0011,0020],login1", {"lrdn0009", "lrdn0010", "lrdn0011", "lrdn0020", "login1"}),
        ("r[1-2]n[08-09]-x", {"r1n08-x", "r1n09-x", "r2n08-x", "r2n09-x"}),
    ],
)
def test_lists_of_hosts_are_expanded(text: str, names: set[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize(
    "text", ["", "(null)", "a,,b", "a[1-", "a[]", "a[x-y]", "a[1-999999999]", "a[1-99999]b[1-99999]", "a b"]
)
def test_what_is_no_list_of_hosts_is_not_known(text: str) -> None:
    assert expand_hosts(text) is None


@given(st.text(alphabet="ab019[]-,. ", max_size=30))
def test_no_list_of_hosts_takes_long_or_fails(text: str) -> None:
    expand_hosts(text)
