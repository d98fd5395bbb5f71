"""Which of Slurm's limits hold, and how many more pilots they leave room for: on real outputs, and level by level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.errors import UnknownState
from htcebridge.model import Pilot, PilotPhase, Shape, SlurmJob
from htcebridge.slurm.levels import (
    ASSOC_FIELDS,
    QOS_FIELDS,
    Asked,
    Row,
    Settings,
    limits_of,
    parse_partition,
    parse_rows,
    parse_settings,
    parse_tres,
    partition_limits,
)
from htcebridge.slurm.limits import Bound, Size, SlurmLimits, Unit, room
from htcebridge.slurm.text import OtherJob

OUTPUTS = Path(__file__).parents[2] / "slurm_outputs"
VERSIONS = ("22.05", "24.11", "26.05")
LEO = 30001
ASKED = Asked(LEO, "INF24_lhc_2", "dcgp_usr_prod", "qos_lowprio")
NODE = Shape(cpus=112, memory_mb=494000)
GPUS = Shape(cpus=32, memory_mb=494000, gpus=4)
ENFORCED = Settings("leonardo", frozenset({"associations", "limits", "qos"}), preempt_by_qos=True)
PARTITION = {"PartitionName": "dcgp_usr_prod", "State": "UP", "MaxTime": "1-00:00:00", "QoS": "N/A"}


def real(version: str, name: str) -> str:
    return (OUTPUTS / version / name).read_text()


def real_limits(version: str) -> SlurmLimits:
    return limits_of(
        ASKED,
        parse_settings(real(version, "scontrol_config.txt")),
        parse_partition(real(version, "scontrol_partition.txt")),
        {row["Name"]: row for row in parse_rows(real(version, "sacctmgr_qos.txt"), QOS_FIELDS)},
        parse_rows(real(version, "sacctmgr_own.txt"), ASSOC_FIELDS),
        parse_rows(real(version, "sacctmgr_account.txt"), ASSOC_FIELDS),
    )


def qos(name: str = "qos_lowprio", **limits: str) -> Row:
    return {**dict.fromkeys(QOS_FIELDS.split(","), ""), "Name": name, "UsageFactor": "1.000000", **limits}


def assoc(user: str = "leo", **limits: str) -> Row:
    empty = dict.fromkeys(ASSOC_FIELDS.split(","), "")
    return {**empty, "Account": "inf24_lhc_2", "User": user, "QOS": "normal,qos_lowprio", **limits}


def found(
    qos_rows: tuple[Row, ...] = (qos(),),
    own: tuple[Row, ...] = (assoc(),),
    above: tuple[Row, ...] = (),
    partition: Mapping[str, str] | None = PARTITION,
    settings: Settings = ENFORCED,
) -> SlurmLimits:
    return limits_of(ASKED, settings, partition, {row["Name"]: row for row in qos_rows}, own, above)


NO_QOS = "partition dcgp_usr_prod does not allow QOS qos_lowprio"
NO_ACCOUNT = "partition dcgp_usr_prod does not allow account INF24_lhc_2"


def pilot(number: int, state: str = "RUNNING", qos: str = "qos_lowprio", account: str = "inf24_lhc_2") -> Pilot:
    times = (1, 1, 1, 3600)
    job = SlurmJob(f"1_{number}", "dcgp", "p", state, "None", "dcgp_usr_prod", qos, account, "lrdn0001", *times)
    return Pilot(job, PilotPhase.ENDED if state == "COMPLETED" else PilotPhase.JOINED)


def other(number: int, user: int = LEO, nodes: int | None = 1, **changes: str) -> OtherJob:
    known = {"account": "inf24_lhc_2", "partition": "dcgp_usr_prod", "qos": "qos_lowprio", "state": "RUNNING"}
    return OtherJob(id=f"{number}", user=user, nodes=nodes, **{**known, **changes})


# --------------------------------------------------------------------------- real outputs


@pytest.mark.parametrize("version", VERSIONS)
def test_the_limits_of_a_real_slurm_are_read_exactly(version: str) -> None:
    limits = real_limits(version)
    assert limits.refusals == ()
    assert (limits.max_wall_s, limits.max_wall_of) == (12 * 3600, "MaxWall of QOS qos_lowprio")
    assert (limits.usage_factor, limits.grace_s) == (0, 30)
    # Not the account's MaxJobs 30: the QOS has MaxJobsPU, and what it has counts.
    assert [(b.holder, b.name, b.most, b.own) for b in limits.bounds] == [
        ("QOS qos_lowprio", "MaxJobsPU", 40, True),
        ("QOS qos_lowprio", "MaxSubmitPU", 50, True),
        ("QOS qos_lowprio", "MaxTRESPU node", 60, True),
        ("QOS qos_lowprio", "GrpTRES cpu", 11200, False),
        ("QOS qos_lowprio", "GrpTRES node", 100, False),
        ("account inf24_lhc_2", "GrpJobs", 80, False),
        ("account inf24_lhc_2", "GrpSubmit", 90, False),
    ]
    assert [(size.tres, size.amount) for size in limits.sizes] == [("cpu", 224), ("mem", 1024 * 1024)]
    assert limits.watch == ("inf24_lhc_2",)


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_output_of_scontrol_is_unknown_wherever_it_is_cut_within_a_word(version: str) -> None:
    text = real(version, "scontrol_config.txt")
    for end in range(text.index("ClusterName")):
        with pytest.raises(UnknownState):
            parse_settings(text[:end])
    for foreign in ("", "Partition nowhere not found\n", "Welcome\n", "PartitionName=a State=UP\nWelcome\n"):
        with pytest.raises(UnknownState):
            parse_partition(foreign)


@pytest.mark.parametrize("foreign", ["Welcome\n", "a|b\n", "\n", "sacctmgr: error\n"])
def test_a_line_that_sacctmgr_did_not_print_makes_the_limits_unknown(foreign: str) -> None:
    with pytest.raises(UnknownState, match="sacctmgr printed a line"):
        parse_rows(foreign, QOS_FIELDS)


def test_resources_are_read_with_their_units() -> None:
    assert parse_tres("cpu=100,mem=2T,gres/gpu=4,node=3") == {"cpu": 100, "mem": 2 * 2**20, "gres/gpu": 4, "node": 3}
    assert parse_tres("mem=494000M,gres/gpu:a100=8") == {"mem": 494000, "gres/gpu:a100": 8}
    assert parse_tres("") == {}
    with pytest.raises(UnknownState):
        parse_tres("cpu")


# --------------------------------------------------------------------------- which limit holds


def test_of_partition_and_qos_the_shorter_walltime_counts() -> None:
    assert found().max_wall_of == "MaxTime of partition dcgp_usr_prod"
    longer = found((qos(MaxWall="2-00:00:00"),))
    assert (longer.max_wall_s, longer.max_wall_of) == (86400, "MaxTime of partition dcgp_usr_prod")


def test_a_qos_may_be_exempt_from_the_partitions_walltime() -> None:
    exempt = found((qos(MaxWall="2-00:00:00", Flags="DenyOnLimit,PartitionTimeLimit"),))
    assert (exempt.max_wall_s, exempt.max_wall_of) == (2 * 86400, "MaxWall of QOS qos_lowprio")


def test_the_associations_walltime_counts_only_where_no_qos_has_one() -> None:
    short = assoc(MaxWall="01:00:00")
    assert found(own=(short,)).max_wall_s == 3600
    assert found((qos(MaxWall="02:00:00"),), own=(short,)).max_wall_s == 7200


def test_an_unlimited_partition_leaves_the_walltime_open() -> None:
    assert found(partition={**PARTITION, "MaxTime": "UNLIMITED"}).max_wall_s is None


def test_an_associations_job_limit_counts_only_where_no_qos_has_one() -> None:
    own = (assoc(MaxJobs="5", MaxSubmit="6"),)
    assert [(bound.name, bound.most) for bound in found(own=own).bounds] == [("MaxJobs", 5), ("MaxSubmit", 6)]
    assert [bound.name for bound in found((qos(MaxJobsPA="9"),), own=own).bounds] == ["MaxJobsPA", "MaxSubmit"]
    assert [bound.name for bound in found((qos(MaxSubmitPU="9"),), own=own).bounds] == ["MaxSubmitPU", "MaxJobs"]


def test_every_account_above_has_its_own_group_limit() -> None:
    above = (assoc("", GrpJobs="7"), {**assoc("", GrpJobs="8"), "Account": "infn"})
    bounds = found(above=above).bounds
    assert [(bound.holder, bound.most, bound.own) for bound in bounds] == [
        ("account inf24_lhc_2", 7, False),
        ("account infn", 8, False),
    ]
    assert [bound.holder for bound in found((qos(GrpJobs="3"),), above=above).bounds] == ["QOS qos_lowprio"]


def test_an_accounts_job_limits_are_its_users_and_not_the_accounts() -> None:
    assert found(above=(assoc("", MaxJobs="7"),)).bounds == ()


def test_the_partitions_qos_comes_before_the_jobs_unless_that_one_says_otherwise() -> None:
    partition = {**PARTITION, "QoS": "dcgp_qos"}
    rows = (qos(MaxSubmitPU="50"), qos("dcgp_qos", MaxSubmitPU="20", MaxJobsPU="10"))
    bounds = found(rows, partition=partition).bounds
    assert [(bound.holder, bound.name, bound.most) for bound in bounds] == [
        ("QOS dcgp_qos of partition dcgp_usr_prod", "MaxJobsPU", 10),
        ("QOS dcgp_qos of partition dcgp_usr_prod", "MaxSubmitPU", 20),
    ]
    over = found((qos(MaxSubmitPU="50", Flags="OverPartQOS"), rows[1]), partition=partition).bounds
    assert [(bound.name, bound.most) for bound in over] == [("MaxSubmitPU", 50), ("MaxJobsPU", 10)]


def test_an_association_for_the_partition_counts_before_the_general_one() -> None:
    own = (assoc(MaxJobs="5"), assoc(Partition="dcgp_usr_prod", MaxJobs="3"), assoc(Partition="other", MaxJobs="1"))
    assert [bound.most for bound in found(own=own).bounds] == [3]


def test_limits_that_slurm_does_not_enforce_do_not_count() -> None:
    settings = replace(ENFORCED, enforced=frozenset())
    limits = found((qos(MaxSubmitPU="1", MaxWall="00:10:00"),), own=(), settings=settings)
    assert (limits.bounds, limits.refusals, limits.max_wall_s) == ((), (), 86400)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (found(own=()), "there is no association of this user with account INF24_lhc_2"),
        (found(()), "there is no QOS qos_lowprio"),
        (found(own=(assoc(QOS="normal"),)), "account INF24_lhc_2 does not allow QOS qos_lowprio"),
        (found(partition=None), "there is no partition dcgp_usr_prod"),
        (found(partition={**PARTITION, "State": "DRAIN"}), "partition dcgp_usr_prod is DRAIN"),
        (found(partition={**PARTITION, "AllowQos": "normal"}), NO_QOS),
        (found(partition={**PARTITION, "DenyQos": "qos_lowprio"}), NO_QOS),
        (found(partition={**PARTITION, "AllowAccounts": "a,b"}), NO_ACCOUNT),
    ],
)  # fmt: skip
def test_what_would_be_refused_leaves_no_room_and_says_why(limits: SlurmLimits, why: str) -> None:
    assert limits.refusals == (why,)
    assert [(cap.room, cap.why) for cap in room(limits, [], [], NODE)] == [(0, why)]


def test_slurm_compares_accounts_without_regard_to_case() -> None:
    assert found(partition={**PARTITION, "AllowAccounts": "inf24_lhc_2"}).refusals == ()


def test_without_slurmdbd_the_partition_alone_counts() -> None:
    limits = partition_limits(ASKED, PARTITION)
    assert (limits.refusals, limits.bounds, limits.max_wall_s) == ((), (), 86400)


# --------------------------------------------------------------------------- room


def bound(name: str = "MaxSubmitPU", unit: Unit = Unit.SUBMITTED, most: int = 50, own: bool = True) -> Bound:
    return Bound(name, "QOS qos_lowprio", unit, most, own, qos="qos_lowprio")


def test_room_counts_ours_and_others_and_says_so() -> None:
    limits = SlurmLimits(LEO, bounds=(bound(),))
    (cap,) = room(limits, [pilot(n) for n in range(45)], [other(n) for n in range(3)], NODE)
    assert (cap.room, cap.why) == (
        2,
        "QOS qos_lowprio allows 50 submitted jobs a user (48 there, 3 of them others')",
    )


def test_ended_pilots_and_other_qos_hold_nothing() -> None:
    limits = SlurmLimits(LEO, bounds=(bound(most=5),))
    pilots = [pilot(1), pilot(2, "COMPLETED"), pilot(3, qos="normal")]
    (cap,) = room(limits, pilots, [other(4, qos="normal"), other(5, user=30002)], NODE)
    assert (cap.room, cap.why) == (4, "QOS qos_lowprio allows 5 submitted jobs a user (1 there)")


def test_other_users_count_for_a_group_limit() -> None:
    limits = SlurmLimits(LEO, bounds=(bound("GrpJobs", Unit.RUNNING, 5, own=False),))
    (cap,) = room(limits, [pilot(1)], [other(5, user=30002)], NODE)
    assert (cap.room, cap.why) == (3, "QOS qos_lowprio allows 5 running jobs (2 there, 1 of them others')")


def test_cores_and_nodes_bound_pilots_by_their_size() -> None:
    limits = SlurmLimits(LEO, bounds=(bound("MaxTRESPU cpu", Unit.CPUS, 1000), bound("MaxTRESPU node", Unit.NODES, 10)))
    cpus, nodes = room(limits, [pilot(1), pilot(2)], [other(1, nodes=4), other(2, nodes=None)], NODE)
    assert cpus.room == (1000 - 2 * 112 - 5) // 112
    assert nodes.room == 10 - 2 - 5


def test_an_accounts_limit_counts_its_jobs_in_every_qos() -> None:
    limits = SlurmLimits(LEO, bounds=(Bound("GrpSubmit", "account a", Unit.SUBMITTED, 9, False, account="a"),))
    pilots = [pilot(1, account="a"), pilot(2, account="A", qos="normal"), pilot(3, account="b")]
    (cap,) = room(limits, pilots, [], NODE)
    assert cap.room == 7


def test_a_partitions_qos_counts_the_jobs_in_that_partition() -> None:
    limits = SlurmLimits(
        LEO,
        bounds=(Bound("MaxJobsPU", "QOS q of partition p", Unit.RUNNING, 9, True, qos="q", partition="dcgp_usr_prod"),),
    )
    others = [other(1, partition="a,dcgp_usr_prod"), other(2, partition="elsewhere")]
    (cap,) = room(limits, [pilot(1)], others, NODE)
    assert cap.room == 7


@pytest.mark.parametrize(
    ("size", "shape", "why"),
    [
        (Size("MaxTRES", "QOS q", "cpu", 56), NODE, "QOS q allows at most cpu=56 a job, a pilot has 112"),
        (Size("MaxTRES", "QOS q", "cpu", 112), NODE, None),
        (Size("MaxTRES", "QOS q", "mem", 1024), NODE, "QOS q allows at most mem=1024M a job, a pilot has 494000"),
        (Size("MaxTRES", "QOS q", "gres/gpu", 2), GPUS, "QOS q allows at most gres/gpu=2 a job, a pilot has 4"),
        (Size("MinTRES", "QOS q", "cpu", 200, True), NODE, "QOS q asks for at least cpu=200 a job, a pilot has 112"),
        (Size("MinTRES", "QOS q", "cpu", 112, True), NODE, None),
        (Size("MaxTRES", "QOS q", "billing", 1), NODE, None),
    ],
)  # fmt: skip
def test_a_pilot_that_is_too_big_for_one_job_has_no_room(size: Size, shape: Shape, why: str | None) -> None:
    caps = room(SlurmLimits(LEO, sizes=(size,)), [], [], shape)
    assert [(cap.room, cap.why) for cap in caps] == ([] if why is None else [(0, why)])


def test_resources_of_one_qos_share_its_cap_and_cores_only_among_equal_pilots() -> None:
    limits = SlurmLimits(LEO, bounds=(bound(), bound("MaxTRESPU cpu", Unit.CPUS, 1000)))
    whole, half = room(limits, [], [], NODE), room(limits, [], [], Shape(56, 1))
    assert whole[0].key == half[0].key
    assert whole[1].key != half[1].key


def test_nothing_known_limits_nothing() -> None:
    assert room(SlurmLimits(LEO, unknown="slurmdbd is away"), [pilot(1)], [other(2)], NODE) == []


@given(st.integers(0, 200), st.integers(0, 80), st.integers(0, 80), st.sampled_from(list(Unit)))
def test_room_is_never_negative_and_never_past_the_limit(most: int, ours: int, theirs: int, unit: Unit) -> None:
    limits = SlurmLimits(LEO, bounds=(bound("x", unit, most),))
    (cap,) = room(limits, [pilot(n) for n in range(ours)], [other(n) for n in range(theirs)], NODE)
    each = 112 if unit is Unit.CPUS else 1
    assert cap.room >= 0
    assert cap.room == 0 or (ours + cap.room) * each + theirs <= most
    assert (ours + cap.room + 1) * each + theirs > most
