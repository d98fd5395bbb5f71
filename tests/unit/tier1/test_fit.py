from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.model import Shape
from htcebridge.pilot.script import template_ad
from htcebridge.tier1.fit import Job, Matcher, conjuncts, evaluate, walltime_expression

VERSION = "$CondorVersion: 25.14.1 2026-10-01 BuildID: 1 $"
WALLTIME = ("AllowedExecuteDuration", "AllowedJobDuration", "BatchRuntime", "MaxWallTimeMins * 60", "maxWallTime * 60")
GPU_RESOURCE = """
[resource.booster]
partition = "boost_usr_prod"
account = "INF24_lhc_1"
qos = "qos_lowprio"
cpus = 32
memory = "494000M"
gpus = 4
walltime = "12h"
"""


def job(**attributes: str) -> str:
    """A tagged job's ad; attributes as ClassAd expressions."""
    given = {
        "OpportunisticSite": '"leonardo"',
        "RequestCpus": "8",
        "RequestMemory": "16000",
        "RequestDisk": "1000000",
        "Requirements": '(TARGET.Arch == "X86_64") && (TARGET.OpSys == "LINUX") && (TARGET.Disk >= RequestDisk) && '
        "(TARGET.Memory >= RequestMemory) && (TARGET.HasFileTransfer)",
        **attributes,
    }
    return "[ " + " ".join(f"{name} = {value};" for name, value in given.items() if value) + " ]"


@pytest.fixture
def matcher(config: Config) -> Matcher:
    return Matcher({"dcgp": template_ad(config, "dcgp", VERSION)})


@pytest.fixture
def both(load: Callable[[str], Config], design_example: str) -> Config:
    return load(design_example + GPU_RESOURCE)


def why(matcher: Matcher, **attributes: str) -> str:
    """The reason; =?= and =!= as the bindings of 25.14 write them back, whatever the version at hand does."""
    fits, reasons = matcher.fit(job(**attributes))
    assert fits == ()
    return reasons["dcgp"].replace(" =?= ", " is ").replace(" =!= ", " isnt ")


# --------------------------------------------------------------------------- fits, and why not


def test_an_ordinary_tagged_job_fits(matcher: Matcher) -> None:
    assert matcher.fit(job()) == (("dcgp",), {})


def test_a_job_as_large_as_the_node_fits_and_one_larger_does_not(matcher: Matcher) -> None:
    assert matcher.fit(job(RequestCpus="112", RequestMemory=str(494000 - 4096)))[0] == ("dcgp",)
    assert why(matcher, RequestCpus="113") == "asks 113 cpus, a pilot has 112"
    assert why(matcher, RequestMemory=str(494000 - 4095)) == "asks 489905 MB memory, a pilot has 489904"


def test_gpus_that_a_pilot_lacks_are_the_reason(matcher: Matcher) -> None:
    assert why(matcher, RequestGPUs="1") == "asks 1 GPUs, a pilot has 0"


def test_disk_that_a_pilot_lacks_is_the_reason(matcher: Matcher) -> None:
    assert why(matcher, RequestDisk=str(4 * 1024**3)).startswith("asks 4294967296 KB disk, a pilot has ")


def test_a_walltime_that_no_pilot_has_is_the_reason(matcher: Matcher) -> None:
    longest_s = 12 * 3600 - 9 * 60
    assert matcher.fit(job(AllowedExecuteDuration=str(longest_s)))[0] == ("dcgp",)
    said = why(matcher, AllowedExecuteDuration=str(40 * 3600))
    assert said == "runs 1d16h, a pilot gives a job 11h51m at most"
    assert why(matcher, AllowedExecuteDuration=str(longest_s + 1)).startswith("runs 11h51m1s")


def test_a_job_without_a_walltime_gets_the_default(load: Callable[[str], Config], design_example: str) -> None:
    config = load(design_example.replace('default_walltime = "8h"', 'default_walltime = "13h"'))
    fits, reasons = Matcher({"dcgp": template_ad(config, "dcgp", VERSION)}).fit(job())
    assert fits == ()
    assert reasons["dcgp"].startswith("runs 13h, ")


def test_a_clause_of_the_jobs_requirements_is_the_reason(matcher: Matcher) -> None:
    said = why(matcher, Requirements='(TARGET.Arch == "X86_64") && (TARGET.HasMagic =?= true)')
    assert said == "the job's Requirements: TARGET.HasMagic is true is false"


def test_a_clause_with_strict_comparisons_beside_others_is_told_apart(matcher: Matcher) -> None:
    said = why(matcher, Requirements='TARGET.Arch =?= "X86_64" && TARGET.Site =?= "CNAF" && TARGET.OpSys =!= "WIN"')
    assert said == 'the job\'s Requirements: TARGET.Site is "CNAF" is false'


def test_a_job_with_an_image_fits_unless_the_resource_has_no_apptainer(
    load: Callable[[str], Config], design_example: str
) -> None:
    with_image = job(Requirements="TARGET.HasContainer && TARGET.HasSIF")
    without = load(design_example.replace("[resource.dcgp]\n", '[resource.dcgp]\napptainer = ""\n'))
    for config, fits in ((load(design_example), ("dcgp",)), (without, ())):
        assert Matcher({"dcgp": template_ad(config, "dcgp", VERSION)}).fit(with_image)[0] == fits


def test_an_undefined_clause_says_so(matcher: Matcher) -> None:
    assert why(matcher, Requirements="TARGET.HasMagic && true").endswith("TARGET.HasMagic is undefined")


def test_a_requirement_with_backslashes_and_quotes_in_strings_still_gets_a_reason(matcher: Matcher) -> None:
    said = why(matcher, Requirements=r'(TARGET.Path =!= "a\\") && (TARGET.Site == "b")')
    assert said == 'the job\'s Requirements: TARGET.Site == "b" is undefined'


@pytest.mark.parametrize("forged", ['"marconi"', "", "true", '"LEONARDO"', "undefined"])
def test_a_job_without_this_grant_never_fits(matcher: Matcher, forged: str) -> None:
    said = why(matcher, OpportunisticSite=forged)
    assert said.startswith("the pilot's START: TARGET.OpportunisticSite is ")


def test_requirements_see_what_the_pilot_advertises(matcher: Matcher) -> None:
    for requirement in (
        'TARGET.OpportunisticSite =?= "leonardo"',
        'TARGET.GLIDEIN_Site == "leonardo"',
        "TARGET.IS_GLIDEIN =?= true",
        "TARGET.TotalCpus >= 64",
    ):
        assert matcher.fit(job(Requirements=f"({requirement})"))[0] == ("dcgp",)


@pytest.mark.parametrize(
    "requirement",
    [
        'versionGE(split(TARGET.CondorVersion)[1], "8.5.6")',
        'stringListMember(TARGET.GLIDEIN_Site, "cnaf,leonardo")',
        "countMatches(TARGET.IS_GLIDEIN, {}) >= RequestGPUs",
    ],
)
def test_requirements_may_use_htcondors_own_functions(config: Config, requirement: str) -> None:
    # split(), stringListMember(), countMatches() are HTCondor's, not the ClassAd library's: without them a clause is
    # an error and the job fits nowhere. In a process of its own: another test may have loaded them.
    code = "import sys; from htcebridge.tier1.fit import Matcher; print(Matcher({'x': sys.argv[1]}).fit(sys.argv[2]))"
    arguments = [template_ad(config, "dcgp", VERSION), job(Requirements=requirement, RequestGPUs="0")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "(('x',), {})\n"
    assert done.stderr == ""


def test_an_attribute_of_the_resource_can_be_required(load: Callable[[str], Config], design_example: str) -> None:
    config = load(design_example + '[resource.dcgp.attributes]\nHasAVX = true\nModel = "a \\"b\\" \\\\ $(x)"\n')
    matcher = Matcher({"dcgp": template_ad(config, "dcgp", VERSION)})
    assert matcher.fit(job(Requirements="TARGET.HasAVX"))[0] == ("dcgp",)
    assert matcher.fit(job(Requirements=r'TARGET.Model == "a \"b\" \\ $(x)"'))[0] == ("dcgp",)


# --------------------------------------------------------------------------- GPU nodes


def test_gpu_nodes_are_kept_for_gpu_jobs(both: Config) -> None:
    matcher = Matcher({name: template_ad(both, name, VERSION) for name in both.resources})
    assert matcher.fit(job(RequestGPUs="1"))[0] == ("booster",)
    fits, reasons = matcher.fit(job())
    assert fits == ("dcgp",)
    assert "RequestGPUs" in reasons["booster"]


def test_gpu_nodes_take_cpu_jobs_where_the_admin_says_so(load: Callable[[str], Config], design_example: str) -> None:
    config = load(design_example + GPU_RESOURCE + "allow_cpu_jobs = true\n")
    matcher = Matcher({name: template_ad(config, name, VERSION) for name in config.resources})
    assert matcher.fit(job(RequestDisk="1000"))[0] == ("dcgp", "booster")


def test_a_job_that_says_zero_gpus_is_a_cpu_job(both: Config) -> None:
    matcher = Matcher({name: template_ad(both, name, VERSION) for name in both.resources})
    assert matcher.fit(job(RequestGPUs="0"))[0] == ("dcgp",)


# --------------------------------------------------------------------------- what a job asks


def test_a_jobs_shape_is_evaluated_not_read() -> None:
    ad = job(RequestMemory="ifThenElse(MemoryUsage =!= undefined, MemoryUsage, 2000 * RequestCpus)", RequestDisk="1025")
    assert evaluate(ad, WALLTIME, 28800).shape == Shape(cpus=8, memory_mb=16000, gpus=0, disk_mb=2)


def test_what_a_job_does_not_say_counts_as_htcondor_counts_it() -> None:
    asked = evaluate("[ ]", WALLTIME, 28800)
    assert asked.shape == Shape(cpus=1, memory_mb=1, gpus=0, disk_mb=0)
    assert asked.walltime_s == 28800


@pytest.mark.parametrize(
    ("attributes", "seconds"),
    [
        ({"AllowedExecuteDuration": "100"}, 100),
        ({"MaxWallTimeMins": "10"}, 600),
        ({"maxWallTime": "10"}, 600),
        ({"BatchRuntime": "50", "maxWallTime": "10"}, 50),
        ({"AllowedJobDuration": "7", "AllowedExecuteDuration": "5", "BatchRuntime": "9"}, 5),
        ({"AllowedExecuteDuration": "undefined", "MaxWallTimeMins": "2"}, 120),
        ({"MaxWallTimeMins": "60 + 60"}, 7200),
        ({}, 28800),
    ],
)
def test_the_first_defined_walltime_attribute_wins(attributes: dict[str, str], seconds: int) -> None:
    assert evaluate(job(**attributes), WALLTIME, 28800).walltime_s == seconds


def test_the_order_of_walltime_attributes_is_the_admins() -> None:
    ad = job(A="1", B="2")
    assert evaluate(ad, ("A", "B"), 3).walltime_s == 1
    assert evaluate(ad, ("B", "A"), 3).walltime_s == 2
    assert evaluate(ad, ("B * 60", "A"), 3).walltime_s == 120


def test_planner_and_start_read_the_same_walltime(config: Config, matcher: Matcher) -> None:
    # ?: binds tighter than *: without parentheses a default would be multiplied, or a factor lost.
    longest_s = 12 * 3600 - 9 * 60
    for name in ("MaxWallTimeMins", "maxWallTime"):
        fitting, too_long = job(**{name: str(longest_s // 60)}), job(**{name: str(longest_s // 60 + 1)})
        assert evaluate(fitting, config.demand.walltime, 28800).walltime_s == longest_s
        assert matcher.fit(fitting)[0] == ("dcgp",)
        assert matcher.fit(too_long)[0] == ()


def test_the_walltime_expression_puts_each_alternative_in_parentheses() -> None:
    assert walltime_expression(("A", "B * 60"), 5) == "((TARGET.A) ?: ((TARGET.B * 60) ?: 5))"


def test_a_walltime_that_is_no_number_is_not_believed() -> None:
    assert evaluate(job(BatchRuntime='"long"'), WALLTIME, 28800).walltime_s == 28800


# --------------------------------------------------------------------------- conjuncts


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("a", ["a"]),
        ("a && b", ["a", "b"]),
        ("a&&b", ["a", "b"]),
        ("(a && b) && c", ["a", "b", "c"]),
        ("((a)) && ((b && (c)))", ["a", "b", "c"]),
        ("(a || b) && c", ["a || b", "c"]),
        ("a || b && c", ["a || b && c"]),
        ("a ? b : c && d", ["a ? b : c && d"]),
        ("(a ?: b) && c", ["a ?: b", "c"]),
        ("a ?: b && c", ["a ?: b && c"]),
        ('x == "a && b" && y', ['x == "a && b"', "y"]),
        (r'x == "a \" && b" && y', [r'x == "a \" && b"', "y"]),
        (r'(x == "a\\") && (y == "b")', [r'x == "a\\"', 'y == "b"']),
        ('(x == ")") && (y == "(")', ['x == ")"', 'y == "("']),
        ("f(a && b, c) && d", ["f(a && b, c)", "d"]),
        ("member(x, {1, 2}) && y[0]", ["member(x, {1, 2})", "y[0]"]),
        ("a =?= 1 && b =!= 2", ["a =?= 1", "b =!= 2"]),
        ("a =?= true || b", ["a =?= true || b"]),
        ("!(a && b) && c", ["!(a && b)", "c"]),
        ("(a) && (b)", ["a", "b"]),
    ],
)
def test_an_expression_is_taken_apart_at_its_top_level(expression: str, parts: list[str]) -> None:
    assert list(conjuncts(expression)) == parts


def test_a_sites_own_rounding_of_requests_is_what_a_job_takes(
    load: Callable[[str], Config], design_example: str, tmp_path: Path
) -> None:
    own = (
        '{% extends "startd_configs/generic.conf.j2" %}\n{% block own %}\n'
        "MODIFY_REQUEST_EXPR_REQUESTCPUS = quantize(RequestCpus, {4})\n"
        "modify_request_expr_RequestMemory = max({RequestMemory, 2000 * RequestCpus})\n{% endblock %}\n"
    )
    templates = tmp_path / "templates"
    templates.mkdir(mode=0o755)
    (templates / "mine.conf.j2").write_text(own)
    ours = f'[resource.dcgp]\ntemplates = "{templates}"\ntemplate = "mine"\n'
    text = re.sub("^template = .*\n", "", design_example, flags=re.MULTILINE).replace("[resource.dcgp]\n", ours)
    matcher = Matcher({"dcgp": template_ad(load(text), "dcgp", VERSION)})

    def takes(**attributes: str) -> tuple[int, int]:
        found = matcher.judge(job(**attributes), Job(Shape(1, 1), 0))["dcgp"]
        assert not found.why_not
        return found.job.shape.cpus, found.job.shape.memory_mb

    assert takes(RequestCpus="1", RequestMemory="130") == (4, 2000)
    assert takes(RequestCpus="5", RequestMemory="30001") == (8, 30001)
    assert matcher.fit(job(RequestCpus="113"))[0] == ()
