"""Which of Slurm's limits hold, and how many more pilots they leave room for: on real outputs, and level by level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.errors import UnknownState
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
    partition_limits,
)
from htcebridge.slurm.limits import Bound, Live, Size, SlurmLimits, Unit, longest_walltime, room
from htcebridge.slurm.reservations import Maintenance
from htcebridge.slurm.tres import HELD_HEADER, parse_held, parse_tres

OUTPUTS = Path(__file__).parents[2] / "slurm_outputs"
VERSIONS = ("22.05", "24.11", "26.05")
LEO = 30001
ASKED = Asked(LEO, "INF24_lhc_2", "dcgp_usr_prod", "qos_lowprio")
NODE = {"cpu": 112, "node": 1, "mem": 494000, "gres/gpu": 0}
GPUS = {"cpu": 32, "node": 1, "mem": 494000, "gres/gpu": 4}
NOW = 1_800_000_000
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


def pilot(qos: str = "qos_lowprio", account: str = "inf24_lhc_2", asks: Mapping[str, float] = NODE) -> Live:
    return Live(0, account, qos, "dcgp_usr_prod", asks, ours=True)


def other(user: int = LEO, known: bool = True, tres: Mapping[str, float] | None = None, **changes: str) -> Live:
    where = {"account": "inf24_lhc_2", "partition": "dcgp_usr_prod", "qos": "qos_lowprio", **changes}
    return Live(user=user, tres={"cpu": 1, "node": 1} if tres is None else tres, known=known, **where)


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
    assert [(cap.room, cap.why) for cap in room(limits, [], NODE)] == [(0, why)]


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
    (cap,) = room(limits, [pilot()] * 45 + [other()] * 3, NODE)
    assert (cap.pilots, cap.why) == (
        2,
        "QOS qos_lowprio allows 50 submitted jobs a user (48 there, 3 of them others')",
    )


def test_other_users_and_other_qos_hold_nothing_of_a_users_limit() -> None:
    limits = SlurmLimits(LEO, bounds=(bound(most=5),))
    (cap,) = room(limits, [pilot(), pilot(qos="normal"), other(qos="normal"), other(user=30002)], NODE)
    assert (cap.pilots, cap.why) == (4, "QOS qos_lowprio allows 5 submitted jobs a user (1 there)")


def test_other_users_count_for_a_group_limit() -> None:
    limits = SlurmLimits(LEO, bounds=(bound("GrpJobs", Unit.RUNNING, 5, own=False),))
    (cap,) = room(limits, [pilot(), other(user=30002)], NODE)
    assert (cap.pilots, cap.why) == (3, "QOS qos_lowprio allows 5 running jobs (2 there, 1 of them others')")


@pytest.mark.parametrize(
    ("unit", "most", "there", "asks", "pilots"),
    [
        (Unit.CPUS, 1000, [pilot(), pilot(), other(tres={"cpu": 16, "node": 4})], NODE, (1000 - 224 - 16) // 112),
        (Unit.NODES, 10, [pilot(), pilot(), other(tres={"cpu": 16, "node": 4})], NODE, 4),
        (Unit.MEMORY, 2 * 2**20, [pilot(), other(tres={"mem": 700000})], NODE, (2 * 2**20 - 494000 - 700000) // 494000),
        (Unit.GPUS, 12, [pilot(asks=GPUS), pilot(), other(tres={"gres/gpu": 1})], GPUS, 1),
    ],
)  # fmt: skip
def test_each_job_counts_with_what_it_holds(
    unit: Unit, most: int, there: list[Live], asks: Mapping[str, float], pilots: int
) -> None:
    (cap,) = room(SlurmLimits(LEO, bounds=(bound("MaxTRESPU", unit, most),)), there, asks)
    assert cap.pilots == pilots


def test_another_resources_pilots_count_at_their_own_size() -> None:
    """faults A9: 160 cores read as 2240, 2240 as 160."""
    limits = SlurmLimits(LEO, bounds=(bound("MaxTRESPU cpu", Unit.CPUS, 2400),))
    small = {"cpu": 8, "node": 1, "mem": 32000}
    (large_cap,) = room(limits, [pilot(asks=small)] * 20, NODE)
    assert (large_cap.room, large_cap.pilots) == (2400 - 160, 20)
    (small_cap,) = room(limits, [pilot()] * 20, small)
    assert (small_cap.room, small_cap.pilots) == (2400 - 2240, 20)
    assert large_cap.key == small_cap.key, "it is one limit"


def test_a_limit_on_gpus_binds_no_pilot_without_one() -> None:
    limits = SlurmLimits(LEO, bounds=(bound("MaxTRESPU gres/gpu", Unit.GPUS, 0),))
    assert room(limits, [], NODE) == []
    (cap,) = room(limits, [], GPUS)
    assert (cap.pilots, cap.why) == (0, "QOS qos_lowprio allows 0 GPUs a user (0 there)")


def test_a_limit_on_one_type_of_gpu_counts_what_asks_for_that_type() -> None:
    limits = SlurmLimits(LEO, bounds=(replace(bound("x", Unit.GPUS, 8), gpu_type="a100"),))
    typed = {**GPUS, "gres/gpu:a100": 4}
    (cap,) = room(limits, [pilot(asks=typed), pilot(asks=GPUS)], typed)
    assert (cap.pilots, cap.why) == (1, "QOS qos_lowprio allows 8 a100 GPUs a user (4 there)")
    assert room(limits, [], GPUS) == [], "Slurm does not hold a job to it that names no type"


def test_what_others_hold_leaves_no_room_while_it_is_not_known() -> None:
    limits = SlurmLimits(LEO, bounds=(bound("MaxTRESPU cpu", Unit.CPUS, 9999), bound("MaxTRESPU node", Unit.NODES, 9)))
    cpus, nodes = room(limits, [pilot(), other(tres={"node": 2}, known=False)], NODE)
    assert (cpus.pilots, nodes.pilots) == (0, 6)
    assert cpus.why.endswith("(112 there, and what 1 other job hold is not known)")


def test_an_accounts_limit_counts_its_jobs_in_every_qos() -> None:
    limits = SlurmLimits(LEO, bounds=(Bound("GrpSubmit", "account a", Unit.SUBMITTED, 9, False, account="a"),))
    (cap,) = room(limits, [pilot(account="a"), pilot(account="A", qos="normal"), pilot(account="b")], NODE)
    assert cap.pilots == 7


def test_a_partitions_qos_counts_the_jobs_in_that_partition() -> None:
    limits = SlurmLimits(
        LEO,
        bounds=(Bound("MaxJobsPU", "QOS q of partition p", Unit.RUNNING, 9, True, qos="q", partition="dcgp_usr_prod"),),
    )
    (cap,) = room(limits, [pilot(), other(partition="a,dcgp_usr_prod"), other(partition="elsewhere")], NODE)
    assert cap.pilots == 7


def test_one_qos_of_two_partitions_is_one_limit_and_counts_the_jobs_of_both() -> None:
    both = [
        SlurmLimits(LEO, bounds=(Bound("MaxJobsPU", f"QOS q of partition {p}", Unit.RUNNING, 9, True, "", "q", p),))
        for p in ("dcgp_usr_prod", "boost_usr_prod")
    ]
    caps = [room(each, [pilot(), other(partition="boost_usr_prod")], NODE, both)[0] for each in both]
    assert [cap.room for cap in caps] == [7, 7]
    assert caps[0].key == caps[1].key


def test_a_qos_limit_by_account_is_one_for_each_account() -> None:
    one, two = (replace(bound("MaxJobsPA", Unit.RUNNING, 9, own=False), account=name) for name in ("a", "b"))
    assert one.key != two.key


@pytest.mark.parametrize(
    ("size", "asks", "why"),
    [
        (Size("MaxTRES", "QOS q", "cpu", 56), NODE, "QOS q allows at most cpu=56 a job, a pilot has 112"),
        (Size("MaxTRES", "QOS q", "cpu", 112), NODE, None),
        (Size("MaxTRES", "QOS q", "mem", 1024), NODE, "QOS q allows at most mem=1024M a job, a pilot has 494000"),
        (Size("MaxTRES", "QOS q", "gres/gpu", 2), GPUS, "QOS q allows at most gres/gpu=2 a job, a pilot has 4"),
        (Size("MinTRES", "QOS q", "cpu", 200, True), NODE, "QOS q asks for at least cpu=200 a job, a pilot has 112"),
        (Size("MinTRES", "QOS q", "cpu", 112, True), NODE, None),
        (Size("MaxTRES", "QOS q", "mem", 2**20), {"mem": 2**21},
         "QOS q allows at most mem=1048576M a job, a pilot has 2097152"),
    ],
)  # fmt: skip
def test_a_pilot_that_is_too_big_for_one_job_has_no_room(
    size: Size, asks: Mapping[str, float], why: str | None
) -> None:
    caps = room(SlurmLimits(LEO, sizes=(size,)), [], asks)
    assert [(cap.room, cap.why) for cap in caps] == ([] if why is None else [(0, why)])


def test_nothing_known_limits_nothing() -> None:
    assert room(SlurmLimits(LEO, unknown="slurmdbd is away"), [pilot(), other()], NODE) == []


@given(st.integers(0, 200), st.integers(0, 80), st.integers(0, 80), st.sampled_from(list(Unit)))
def test_room_is_never_negative_and_never_past_the_limit(most: int, ours: int, theirs: int, unit: Unit) -> None:
    limits = SlurmLimits(LEO, bounds=(bound("x", unit, most),))
    (cap,) = room(limits, [pilot(asks=GPUS)] * ours + [other(tres=dict.fromkeys(GPUS, 1.0))] * theirs, GPUS)
    each = {Unit.CPUS: 32, Unit.MEMORY: 494000, Unit.GPUS: 4}.get(unit, 1)
    assert cap.pilots >= 0
    assert cap.pilots == 0 or (ours + cap.pilots) * each + theirs <= most
    assert (ours + cap.pilots + 1) * each + theirs > most


# --------------------------------------------------------------------------- which are read, and which not


def test_every_countable_resource_of_every_kind_of_limit_is_read() -> None:
    amounts = "cpu=100,gres/gpu=8,gres/gpu:a100=4,mem=1T,node=3"
    counted = ["cpu", "gres/gpu", "gres/gpu:a100", "mem", "node"]
    for name in ("GrpTRES", "MaxTRESPU", "MaxTRESPA"):
        bounds = found((qos(**{name: amounts}),)).bounds
        assert [each.tres for each in bounds] == counted, name
        assert [each.most for each in bounds] == [100, 8, 4, 2**20, 3], name
    of_association = found(own=(assoc(GrpTRES=amounts, MaxTRES=amounts),), above=(assoc("", GrpTRES="gres/gpu=9"),))
    assert [each.tres for each in of_association.bounds] == [*counted, "gres/gpu"]
    assert [each.tres for each in of_association.sizes] == counted
    of_partition = found(
        (qos(), qos("part", MaxTRESPU="gres/gpu=2", MaxTRES="gres/gpu=1")), partition={**PARTITION, "QoS": "part"}
    )
    assert [each.tres for each in of_partition.bounds] == ["gres/gpu"]
    assert [each.tres for each in of_partition.sizes] == ["gres/gpu"]


@pytest.mark.parametrize("most", [2, 4])
def test_a_gpu_limit_per_user_bounds_pilots_of_four(most: int) -> None:
    """cases/qos-gpu-limit-per-user.txt: one pilot of four GPUs with gres/gpu=4, none with gres/gpu=2."""
    limits = found((qos(MaxTRESPU=f"gres/gpu={most}"),))
    (cap,) = room(limits, [], GPUS)
    assert (cap.pilots, cap.why) == (most // 4, f"QOS qos_lowprio allows {most} GPUs a user (0 there)")


@pytest.mark.parametrize(
    ("limits", "unread"),
    [
        (found((qos(MaxSubmitPU="many"),)), "MaxSubmitPU 'many' of QOS qos_lowprio"),
        (found((qos(MaxTRESPU="cpu=lots,node=3"),)), "MaxTRESPU 'cpu=lots' of QOS qos_lowprio"),
        (found((qos(MaxTRESPU="cpu=1K"),)), "MaxTRESPU 'cpu=1K' of QOS qos_lowprio"),
        (found((qos(GrpTRES="billing=1000"),)), "GrpTRES 'billing=1000' of QOS qos_lowprio"),
        (found((qos(MaxWall="a day"),)), "MaxWall 'a day' of QOS qos_lowprio"),
        (found(own=(assoc(GrpTRES="license/x=1"),)),
         "GrpTRES 'license/x=1' of this user's association with account inf24_lhc_2"),
        (found(partition={**PARTITION, "MaxTime": "soon"}), "MaxTime 'soon' of partition dcgp_usr_prod"),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_read_or_counted_is_said(limits: SlurmLimits, unread: str) -> None:
    assert limits.unread == (unread,)


def test_an_association_for_a_partition_counts_the_jobs_of_that_partition() -> None:
    (one,) = found(own=(assoc(Partition="dcgp_usr_prod", MaxJobs="3"),)).bounds
    assert (one.holder, one.partition) == (
        "this user's association with account inf24_lhc_2 in partition dcgp_usr_prod",
        "dcgp_usr_prod",
    )
    (cap,) = room(SlurmLimits(LEO, bounds=(one,)), [pilot(), other(partition="elsewhere")], NODE)
    assert cap.pilots == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_no_limit_of_a_real_slurm_is_left_unread(version: str) -> None:
    assert real_limits(version).unread == ()


# --------------------------------------------------------------------------- what jobs hold


def test_what_jobs_hold_is_read_by_their_id() -> None:
    lines = (
        "12_3|cpu=112,mem=494000M,node=1,billing=112",
        "13|cpu=4,mem=2.50G,node=1,gres/gpu=2,gres/gpu:a100=2",
        "14|",
    )
    assert parse_held("\n".join((HELD_HEADER, *lines, ""))) == {
        "12_3": {"cpu": 112, "mem": 494000, "node": 1, "billing": 112},
        "13": {"cpu": 4, "mem": 2560, "node": 1, "gres/gpu": 2, "gres/gpu:a100": 2},
        "14": {},
    }


@pytest.mark.parametrize("said", ["", "Welcome\n", f"{HELD_HEADER}\nnonsense\n", f"{HELD_HEADER}\n12|cpu=lots\n"])
def test_an_answer_that_is_none_of_squeues_is_unknown(said: str) -> None:
    with pytest.raises(UnknownState):
        parse_held(said)


# --------------------------------------------------------------------------- how long a pilot may be


def maintenance(begins_in_s: int, whole: bool = True) -> Maintenance:
    return Maintenance("maint", NOW + begins_in_s, NOW + begins_in_s + 7200, whole)


@pytest.mark.parametrize(
    ("found", "slack_s", "most_s"),
    [
        ((), 0, 12 * 3600),
        ((maintenance(4 * 3600),), 0, 4 * 3600),
        ((maintenance(4 * 3600 + 59),), 600, 4 * 3600 - 600),
        ((maintenance(4 * 3600, whole=False),), 0, 12 * 3600),
        ((maintenance(13 * 3600),), 0, 12 * 3600),
        ((maintenance(9 * 3600), maintenance(5 * 3600)), 0, 5 * 3600),
        ((maintenance(-60),), 0, 0),
        ((maintenance(-7200),), 0, 12 * 3600),
    ],
)  # fmt: skip
def test_a_new_pilot_ends_before_a_maintenance_of_all_nodes(
    found: tuple[Maintenance, ...], slack_s: int, most_s: int
) -> None:
    limits = SlurmLimits(LEO, max_wall_s=12 * 3600, max_wall_of="MaxWall of QOS q", maintenances=found)
    longest_s, of = longest_walltime(limits, NOW, slack_s)
    assert longest_s == most_s
    assert of.startswith("MaxWall of QOS q" if most_s == 12 * 3600 else "maintenance maint, ")
