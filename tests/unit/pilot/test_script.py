from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from htcebridge import templates
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.pilot import script as pilot_script

Make = Callable[..., Config]

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "gpus": {"gpus": 4, "gres": []},
    "cvmfs": {"condor": "cvmfs:/cvmfs/oasis.opensciencegrid.org/condor 24", "cvmfs": ["cms.cern.ch", "atlas.cern.ch"]},
    "tarball": {"condor": "tarball:/shared/it's condor.tar.gz", "scratch": "/local scratch"},
    "bare": {"setup": [], "cvmfs": [], "gres": [], "scratch": "$SCRATCH/it's here", "min_walltime": None},
    "setup": {"setup": ["source /opt/it\\'s.sh", 'export X="$(date)"', "if true; then", "  :", "fi"]},
    "no containers": {"apptainer": "", "bind": []},
    "attributes": {"attributes": {"Motto": 'it\'s "$(touch X)" `touch X` \\ %', "HasAVX": True, "N": 3, "R": 0.5}},
}
NASTY = [
    "/plain",
    "/with space",
    "/it's",
    '/say "hi"',
    "/`touch X`",
    "/$(touch X)",
    "/a;touch X",
    "/back\\slash",
    "/&& touch X",
    "/%j",
    "/#hash",
    "/*",
    "/$HOME",
    "/!x",
    "/é",
]


@pytest.fixture
def make(load: Callable[[str], Config], design_example: str) -> Make:
    """The example with these keys of [resource.dcgp] changed; None takes a key away."""

    def changed(**keys: object) -> Config:
        raw = tomllib.loads(design_example)
        raw["resource"]["dcgp"].update(keys)
        for key in [key for key, value in keys.items() if value is None]:
            del raw["resource"]["dcgp"][key]
        return load(tomli_w.dumps(raw))

    return changed


def lines_of(script: str, *starts: str) -> str:
    return "\n".join(line for line in script.splitlines() if line.startswith(starts))


def bash(text: str, folder: Path, **variables: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/home/leo", **variables}
    done = subprocess.run(
        ["bash", "-u"], input=text, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=10
    )
    assert done.stderr == ""
    return done.stdout


# --------------------------------------------------------------------------- the script as a whole


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_rendered_script_is_bash(make: Make, variant: str) -> None:
    script = pilot_script.script(make(**VARIANTS[variant]), "dcgp")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_rendered_script_passes_shellcheck(make: Make, variant: str) -> None:
    script = pilot_script.script(make(**VARIANTS[variant]), "dcgp")
    done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("executor", [None, "/x/glidein.sh"])
def test_facts_come_first_and_the_constant_parts_stand_in_it_as_they_are(make: Make, executor: str | None) -> None:
    kind = "pilot" if executor is None else "executor"
    changed = {} if executor is None else {"executor": executor, "mode": "constant"}
    script = pilot_script.script(make(**changed), "dcgp")
    places = [script.index("\nreadonly PILOT_INSTANCE=leonardo "), script.index("\nwrite_checks() {\n")]
    for part in ("job-functions", f"{kind}-functions", f"{kind}-main"):
        text = (Path(templates.__file__).parent.parent / "slurm_scripts" / f"{part}.sh").read_text()
        assert script.count(text) == 1
        places.append(script.index(text))
    assert places == sorted(places)
    assert script.endswith(text)


@pytest.mark.parametrize("value", ["/it's  # not a comment", "/a  # b"])
def test_facts_with_a_hash_in_them_stay_what_they_are(make: Make, tmp_path: Path, value: str) -> None:
    script = pilot_script.script(make(token_file=value), "dcgp")
    fact = lines_of(script, "readonly PILOT_TOKEN_FILE=")
    assert bash(fact + '\nprintf %s "$PILOT_TOKEN_FILE"', tmp_path) == value


def test_the_directives_stand_before_the_first_command(make: Make) -> None:
    script = pilot_script.script(make(), "dcgp")
    before = script[: re.search(r"^[^#\n]", script, re.MULTILINE).start()]
    assert script.count("\n#SBATCH ") == before.count("\n#SBATCH ")
    assert script.startswith("#!/bin/bash\n")


def test_the_directives_say_what_the_resource_says(make: Make, tmp_path: Path) -> None:
    script = pilot_script.script(make(), "dcgp")
    directives = set(re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE))
    assert {
        "--job-name=GP_CMS_CVMFS_STARTD",
        "--account=INF24_lhc_2",
        "--partition=dcgp_usr_prod",
        "--qos=qos_lowprio",
        "--nodes=1",
        "--cpus-per-task=112",
        "--mem=494000M",
        "--gres=tmpfs:3t",
        "--time=720",
        "--time-min=120",
        "--no-requeue",
        "--export=NIL",
        f"--output={tmp_path}/work/htcebridge/logs/%A_%a.out",
    } <= directives
    assert any(re.fullmatch(r"--signal=B:USR1@\d+", line) for line in directives)


def test_gpus_are_asked_for_once(make: Make) -> None:
    assert "--gres=gpu:4\n" in pilot_script.script(make(gpus=4, gres=[]), "dcgp")
    assert "--gres=gpu:a100:4,tmpfs:1g\n" in pilot_script.script(make(gpus=4, gres=["gpu:a100:4", "tmpfs:1g"]), "dcgp")


def test_no_min_walltime_and_no_gres_leave_no_directive(make: Make) -> None:
    script = pilot_script.script(make(min_walltime=None, gres=[]), "dcgp")
    directives = lines_of(script, "#SBATCH")
    assert "--time-min" not in directives
    assert "--gres" not in directives


def test_the_warning_comes_before_the_end_and_after_the_margin(make: Make) -> None:
    for margin, seconds in (("4m", 180), ("2m", 90), ("10m", 180), ("30s", 30)):
        assert f"--signal=B:USR1@{seconds}\n" in pilot_script.script(make(margin=margin), "dcgp")


def test_the_startds_configuration_is_in_the_script_word_for_word(make: Make) -> None:
    config = make(attributes={"Motto": "it's $(touch X) `touch X`"})
    assert pilot_script.startd_config(config, "dcgp") in pilot_script.script(config, "dcgp")


def test_the_script_has_no_secret_in_it(make: Make, tmp_path: Path) -> None:
    token = tmp_path / "pilot.idtoken"
    token.write_text("eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl")
    token.chmod(0o600)
    config = make(token_file=str(token))
    for text in (
        pilot_script.script(config, "dcgp"),
        pilot_script.startd_config(config, "dcgp"),
        pilot_script.template_ad(config, "dcgp", ""),
    ):
        assert "eyJ" not in text
    assert str(token) in pilot_script.script(config, "dcgp")


def test_an_unknown_resource_is_told_the_known_ones(config: Config) -> None:
    for render in (pilot_script.script, pilot_script.startd_config):
        with pytest.raises(ConfigError, match=r"no resource 'dgcp'.*known: dcgp"):
            render(config, "dgcp")


# --------------------------------------------------------------------------- nasty values end as themselves


@pytest.mark.parametrize("path", [path for path in NASTY if not set(path) & set("$`")])
def test_a_scratch_path_is_that_path_and_no_command(make: Make, tmp_path: Path, path: str) -> None:
    script = pilot_script.script(make(scratch=path), "dcgp")
    said = bash(lines_of(script, "SCRATCH=") + '\nprintf %s "$SCRATCH"', tmp_path)
    assert said == path
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("path", [path for path in NASTY if not set(path) & set("$`")])
@pytest.mark.parametrize("variable", ["$TMPDIR", "${TMPDIR}"])
def test_a_scratch_path_begins_with_the_nodes_own_variable(
    make: Make, tmp_path: Path, path: str, variable: str
) -> None:
    text = lines_of(pilot_script.script(make(scratch=variable + path), "dcgp"), "SCRATCH=") + '\nprintf %s "$SCRATCH"'
    assert bash(text, tmp_path, TMPDIR="/node local") == "/node local" + path
    assert bash(text, tmp_path) == "/tmp" + path
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("path", ["~/scratch", "/x/$USER", "/x/`id`", "$1x/y", "$(id)"])
def test_a_scratch_path_that_the_node_would_not_expand_is_refused(make: Make, path: str) -> None:
    with pytest.raises(ConfigError, match="scratch"):
        make(scratch=path)


@pytest.mark.parametrize("path", [path for path in NASTY if "$" not in path])
def test_a_token_file_is_that_path_and_no_command(make: Make, tmp_path: Path, path: str) -> None:
    script = pilot_script.script(make(token_file=path), "dcgp")
    fact = lines_of(script, "readonly PILOT_TOKEN_FILE=")
    assert bash(fact + '\nprintf %s "$PILOT_TOKEN_FILE"', tmp_path) == path
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("key", ["token_file", "shared_dir"])
@pytest.mark.parametrize("path", ["/$(touch X)", "/$UNSET_HERE/x", "$UNSET_HERE/x"])
def test_a_path_with_an_unset_variable_is_refused(make: Make, key: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = .*environment variable"):
        pilot_script.script(make(**{key: path}), "dcgp")


@pytest.mark.parametrize("path", [path for path in NASTY if "$" not in path])
def test_a_shared_directory_is_quoted_for_sbatch_or_refused(make: Make, path: str) -> None:
    if re.search(r'["\\%]', path):
        with pytest.raises(ConfigError, match="choose a path"):
            pilot_script.script(make(shared_dir=path), "dcgp")
        return
    script = pilot_script.script(make(shared_dir=path), "dcgp")
    (output,) = re.findall(r"^#SBATCH --output=(.*)$", script, re.MULTILINE)
    assert output.replace('"', "") == f"{path}/logs/%A_%a.out"
    assert ('"' in output) == (not re.fullmatch(r"[\w/]+", path))


def test_a_shared_directory_with_a_line_break_in_its_variable_adds_no_directive(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK", "/work\n#SBATCH --account=paying")
    with pytest.raises(ConfigError):
        pilot_script.script(make(), "dcgp")


@pytest.mark.parametrize("source", ["cvmfs:/cvmfs", "tarball:"])
@pytest.mark.parametrize("path", [path for path in NASTY if path != "/*"])
def test_where_htcondor_comes_from_runs_no_command(make: Make, tmp_path: Path, source: str, path: str) -> None:
    script = pilot_script.script(make(condor=source + path), "dcgp")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # From the choice of HTCondor to the check that it is there, with what they call replaced.
    stubs = (
        '\nfinish() { printf "%s\\n" "$2"; }\nuse_condor() { printf "%s\\n" "$1"; }\n'
        "mkdir() { :; }\ntar() { printf '%s\\n' \"$2\"; }\nPILOT_DIR=/pilot\nfind_condor\n"
    )
    said = bash(script.partition("# --- pilot-main.sh ")[0] + stubs, tmp_path)
    assert (path if source == "tarball:" else "/cvmfs" + path) in said.splitlines()
    assert f"condor_master is not on PATH ({source}{path})" in said
    assert not (tmp_path / "X").exists()


def test_setup_lines_stand_as_the_admin_wrote_them(make: Make) -> None:
    lines = VARIANTS["setup"]["setup"]
    assert "\n" + "\n".join(lines) + "\n" in pilot_script.script(make(setup=lines), "dcgp")


def test_nothing_of_the_startds_configuration_is_expanded_by_the_shell(make: Make, tmp_path: Path) -> None:
    config = make(attributes={"Motto": 'it\'s "q" $(touch X) `touch X` $HOME \\ %', "End": "END_OF_FILE"})
    script = pilot_script.script(config, "dcgp")
    start = script.index('cat > "$PILOT_DIR/startd.conf" << ')
    heredoc = script[start : script.index("\nEND_OF_FILE\n", start)] + "\nEND_OF_FILE\n"
    bash(f"PILOT_DIR={tmp_path}\n{heredoc}", tmp_path)
    assert (tmp_path / "startd.conf").read_text().strip() == pilot_script.startd_config(config, "dcgp").strip()
    assert not (tmp_path / "X").exists()


# --------------------------------------------------------------------------- the startd's configuration


def test_a_dollar_in_an_attribute_begins_no_macro(make: Make) -> None:
    text = pilot_script.startd_config(make(attributes={"Motto": "$(START)"}), "dcgp")
    assert '\nMotto = "$(DOLLAR)(START)"\n' in text


def test_attributes_and_identity_are_advertised(make: Make) -> None:
    text = pilot_script.startd_config(make(attributes={"HasAVX": True, "Rank2": 1.5}), "dcgp")
    for line in (
        'OpportunisticSite = "leonardo"',
        'PilotInstance = "leonardo"',
        'PilotResource = "dcgp"',
        "HasAVX = True",
        "Rank2 = 1.5",
    ):
        assert f"\n{line}\n" in text
    (advertised,) = re.findall(r"^STARTD_ATTRS = (.*)$", text, re.MULTILINE)
    assert {"OpportunisticSite", "PilotInstance", "PilotResource", "HasAVX", "Rank2"} <= set(advertised.split())


@pytest.mark.parametrize("name", ["START", "Start", "LOG", "NODE_IS_HEALTHY", "GLIDEIN_ToDie_", "Startd_Attrs"])
def test_an_attribute_that_is_a_knob_is_refused(make: Make, name: str) -> None:
    config = make(attributes={name: True})
    if name.endswith("_"):
        assert f"\n{name} = True\n" in pilot_script.startd_config(config, "dcgp")
        return
    with pytest.raises(ConfigError, match=f"attributes: {name} is the pilot's own"):
        pilot_script.startd_config(config, "dcgp")


def test_start_accepts_the_grant_alone(config: Config) -> None:
    start = pilot_script.start_expression(config, config.resources["dcgp"])
    assert start.startswith('(TARGET.OpportunisticSite =?= "leonardo") && ')
    # A startd without GPUs would start a job that asks for one.
    assert "((TARGET.RequestGPUs ?: 0) <= 0)" in start


def test_every_setting_stands_on_a_line_of_its_own(make: Make) -> None:
    for variant in VARIANTS.values():
        for line in pilot_script.startd_config(make(**variant), "dcgp").splitlines():
            assert re.match(r"#|$|use feature:\w+|include ifexist : |[A-Za-z_.]\w*(\.\w+)? =", line), line


def test_htcondor_is_configured_by_this_text_alone(make: Make) -> None:
    """USER_CONFIG_FILE: its default is ~/.condor/user_config, which wins over CONDOR_CONFIG (htcondor2 25.14)."""
    for variant in VARIANTS.values():
        lines = pilot_script.startd_config(make(**variant), "dcgp").splitlines()
        for knob in ("LOCAL_CONFIG_DIR", "LOCAL_CONFIG_FILE", "USER_CONFIG_FILE"):
            assert [line for line in lines if line.startswith(knob)] == [f"{knob} ="]
        for knob in ("REQUIRE_LOCAL_CONFIG_FILE", "ENABLE_RUNTIME_CONFIG", "ENABLE_PERSISTENT_CONFIG"):
            assert [line for line in lines if line.startswith(knob)] == [f"{knob} = False"]


def test_the_template_ad_is_a_classad(make: Make) -> None:
    import classad2

    for variant in VARIANTS.values():
        ad = classad2.ClassAd(pilot_script.template_ad(make(**variant), "dcgp", ""))
        assert ad["Cpus"] == 112
        assert ad["Memory"] == 494000 - 4096


def test_a_node_that_is_not_healthy_takes_no_job(make: Make) -> None:
    import classad2

    config = make()
    ad = classad2.ClassAd(pilot_script.template_ad(config, "dcgp", ""))
    job = classad2.ClassAd('[ OpportunisticSite = "leonardo"; RequestCpus = 1; BatchRuntime = 60 ]')
    assert ad.lookup("Start").eval(ad, job) is True
    ad["NODE_IS_HEALTHY"] = False
    assert ad.lookup("Start").eval(ad, job) is False


@pytest.mark.parametrize(
    ("free", "asks", "takes"),
    [((32, 4), (4, 0), True), ((32, 4), (5, 0), False), ((20, 1), (13, 0), True), ((5, 4), (5, 1), True)],
)
def test_jobs_without_a_gpu_leave_free_gpus_their_cores(
    make: Make, free: tuple[int, int], asks: tuple[int, int], takes: bool
) -> None:
    import classad2

    config = make(cpus=32, gpus=4, gres=[], allow_cpu_jobs=True, cpus_kept_per_gpu=7)
    ad = classad2.ClassAd(pilot_script.template_ad(config, "dcgp", ""))
    ad["Cpus"], ad["GPUs"] = free
    job = classad2.ClassAd(
        f'[ OpportunisticSite = "leonardo"; BatchRuntime = 60; RequestCpus = {asks[0]}; RequestGPUs = {asks[1]} ]'
    )
    assert ad.lookup("Start").eval(ad, job) is takes


def test_the_pool_is_told_of_the_site_and_its_speed(make: Make) -> None:
    text = pilot_script.startd_config(make(apel_scaling=1.25, apel_specs={"HEPscore23": 17.4, "HEPSPEC": 14}), "dcgp")
    assert "\nApelScaling = 1.25\nApelSpecs = [ HEPscore23 = 17.4; HEPSPEC = 14.0; ]\n" in text
    assert re.search(r"^STARTD_ATTRS = .* ApelScaling ApelSpecs$", text, re.MULTILINE)


def test_a_bash_of_rhel_8_reads_every_script(make: Make) -> None:
    """RHEL 8 has bash 4.4. What came later, by bash's own CHANGES, stands in no script."""
    later = r"\$\{\w+@[ULuKk]\}|\bwait -(n )?p\b|EPOCH(REALTIME|SECONDS)|SRANDOM|BASH_ARGV0|wait -n \"?\$"
    for variant in VARIANTS.values():
        assert not re.search(later, pilot_script.script(make(**variant), "dcgp"))


# --------------------------------------------------------------------------- filters


def test_a_line_break_cannot_enter_htcondors_configuration() -> None:
    with pytest.raises(ConfigError, match="line break"):
        templates.condor_value("a\nSTART = true")


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"startd_configs/generic\.conf\.j2"):
        templates.render("startd_configs/generic.conf.j2")


def test_a_missing_template_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no template startd_configs/other\.j2; there are: .*generic\.conf\.j2"):
        templates.render("startd_configs/other.j2")


# --------------------------------------------------------------------------- templates of the admin's own


@pytest.mark.parametrize("name", ["generic", "leonardo-dcgp", "leonardo-booster"])
def test_what_comes_with_htcebridge_extends_generic(make: Make, name: str) -> None:
    text, generic = (
        re.sub(r"PilotConfig = .*", "", pilot_script.startd_config(config, "dcgp"))
        for config in (make(template=name), make())
    )
    assert text.startswith(generic.rstrip("\n"))


def test_an_own_template_extends_generic(make: Make, tmp_path: Path) -> None:
    own = '{% extends "startd_configs/generic.conf.j2" %}\n{% block own %}\nNETWORK_INTERFACE = 172.*\n{% endblock %}\n'
    (tmp_path / "mine.conf.j2").write_text(own)
    config = make(template="mine", templates=str(tmp_path))
    assert pilot_script.startd_config(config, "dcgp").endswith("\nNETWORK_INTERFACE = 172.*\n")
    assert pilot_script.startd_config(config, "dcgp") in pilot_script.script(config, "dcgp")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ nobody }}", "/mine.conf.j2, line 1: 'nobody' is undefined"),
        ("START = {{ start }}\n{% if %}", "/mine.conf.j2, line 2: "),
        ('{% extends "own/none" %}', "no template own/none; there are: own/mine.conf.j2"),
        ("{{ 1 / 0 }}", "/mine.conf.j2, line 1: division by zero"),
        ("\n{{ resource.cpus + 'a' }}", "/mine.conf.j2, line 2: unsupported operand"),
        ("START = true\n", "START is not in what it makes"),
        ('{% extends "startd_configs/generic.conf.j2" %}{% block ovn %}{% endblock %}', "generic has no block ovn"),
    ],
)
def test_an_own_template_that_cannot_be_rendered_says_where(make: Make, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.conf.j2").write_text(text)
    with pytest.raises(ConfigError) as error:
        pilot_script.script(make(template="mine", templates=str(tmp_path)), "dcgp")
    assert says in str(error.value)


def test_an_unknown_template_is_an_error(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"no template startd_configs/none\.conf\.j2; there are: .*leonardo-dcgp"):
        pilot_script.script(make(template="none"), "dcgp")


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60))
def test_a_here_document_is_the_text_whatever_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("heredoc")
    whole = f"{text}\nEND_OF_FILE\n$(touch {folder}/X) `touch {folder}/X` \\\n"
    done = subprocess.run(
        ["bash", "-u"],
        input=f"cat > {folder}/file {templates.heredoc(whole)}\n".encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    assert (folder / "file").read_bytes() == whole.encode()
    assert not (folder / "X").exists()


@pytest.mark.parametrize("text", ["", "plain", 'a"b', "a\\b", 'a\\"b', "a\\", "$(x)", "é"])
def test_a_classad_string_evaluates_to_the_text(text: str) -> None:
    import classad2

    assert classad2.ExprTree(templates.classad_string(text)).eval() == text


@pytest.mark.parametrize(("value", "literal"), [(True, "True"), (False, "False"), (3, "3"), (0.5, "0.5")])
def test_classad_numbers_and_booleans_stay_what_they_are(value: object, literal: str) -> None:
    assert templates.classad_string(value) == literal
