"""`config import`: the old tool's JSON files and scripts, well written and otherwise."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from htcebridge.config import legacy, legacy_script
from htcebridge.config.legacy_script import Launch
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.pilot import script as pilot_script

Load = Callable[[str], Config]

DCGP = {
    "jobexecutor": "./dcgp_lowprio.job",
    "log_prefix": "logs/dcgp_",
    "jobname": "GP_VO_CVMFS_JOB",
    "max_running": 2,
    "max_idle": 1,
    "max_hours": 20,
}
SCRIPT = """\
#!/bin/bash
export account=INF24_lhc_2
export partition=dcgp_usr_prod
export length=720   # in minutes
#export ntasks=8
export cpus=112
export jobname=GP_VO_CVMFS_JOB
export space='tmpfs:3t'
export SCRIPTS=$WORK/glidein
export EXE=$SCRIPTS/wrapper
export TOKEN=$SCRIPTS/vo.idtoken

echo starting at `date`
srun -A $account --qos=qos_lowprio -J $jobname -p $partition -t $length --gres=$space --ntasks=1 \\
    --cpus-per-task=$cpus $EXE
#srun -A other -p debug --pty bash
echo ended with code $?
exit 0
"""


@pytest.fixture
def old(tmp_path: Path) -> Callable[..., Path]:
    """old(script=..., name=..., **keys): a JSON file of the old tool, and its script beside it."""

    def write(script: str | None = SCRIPT, name: str = "dcgp_lowprio", **keys: Any) -> Path:
        folder = tmp_path / "old"
        folder.mkdir(exist_ok=True)
        values = {**DCGP, "jobexecutor": f"./{name}.job", **keys}
        if script is not None:
            (folder / f"{name}.job").write_text(script)
        path = folder / f"{name}.json"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
        return path

    return write


def filled(text: str, **values: str) -> str:
    """The imported text as an admin would fill it in."""
    known = {"collector": '"cm01.cr.example.org:9618"', "memory": '"494000M"', **values}
    for key, value in known.items():
        text = text.replace(f'\n{key} = "" # FILL IN', f"\n{key} = {value} #")
    assert "FILL IN: " not in text, text
    return text


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """$WORK with the executor in it."""
    wrapper = tmp_path / "work" / "glidein" / "wrapper"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    return tmp_path / "work"


# --------------------------------------------------------------------------- the whole way


def test_an_import_keeps_every_number_of_the_old_tool(old: Callable[..., Path], load: Load, site: Path) -> None:
    imported = legacy.import_files([old()])
    assert imported.missing == ("tier1.collector", "resource.dcgp_lowprio.memory")
    assert imported.notes == ()
    resource = load(filled(imported.text)).resources["dcgp_lowprio"]
    assert (resource.mode, str(resource.executor)) == ("constant", f"{site}/glidein/wrapper")
    assert (resource.max_running, resource.max_pending, resource.max_hours) == (2, 1, 20)
    assert (resource.account, resource.partition, resource.qos) == ("INF24_lhc_2", "dcgp_usr_prod", "qos_lowprio")
    assert (resource.cpus, resource.gpus, resource.gres) == (112, 0, ("tmpfs:3t",))
    assert (resource.walltime, resource.job_name) == (timedelta(hours=12), "GP_VO_CVMFS_JOB")


def test_an_imported_pilot_gives_its_executor_what_the_script_exported(
    old: Callable[..., Path], load: Load, site: Path
) -> None:
    config = load(filled(legacy.import_files([old()]).text))
    lines = config.resources["dcgp_lowprio"].setup
    said = subprocess.run(
        ["bash", "-c", "\n".join(lines) + "\nenv"], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin"}
    ).stdout.splitlines()
    assert {f"TOKEN={site}/glidein/vo.idtoken", "space=tmpfs:3t", "length=720", f"EXE={site}/glidein/wrapper"} <= set(
        said
    )
    assert f"\nreadonly PILOT_EXECUTOR={site}/glidein/wrapper " in pilot_script.script(config, "dcgp_lowprio")


def test_what_is_left_to_fill_in_is_named_by_config_check(
    old: Callable[..., Path], htcebridge_command: Callable[..., Any], tmp_path: Path, site: Path
) -> None:
    out = tmp_path / "new" / "htcebridge.toml"
    said = htcebridge_command("config", "import", old(), "--output", out)
    assert (said.code, said.err) == (0, "")
    assert "Fill in: tier1.collector, resource.dcgp_lowprio.memory\n" in said.out
    checked = htcebridge_command("--config", out, "config", "check")
    assert checked.code == 2
    complaints = [line.removeprefix("htcebridge: ") for line in checked.err.splitlines()]
    marked = [number for number, line in enumerate(out.read_text().splitlines(), start=1) if '= "" # FILL IN: ' in line]
    assert [line.split(": ")[0] for line in complaints] == [f"{out}:{number}" for number in marked]
    out.write_text(filled(out.read_text()))
    assert htcebridge_command("--config", out, "config", "check").code == 0


def test_nothing_is_overwritten(
    old: Callable[..., Path], htcebridge_command: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "there.toml"
    out.write_text("mine")
    said = htcebridge_command("config", "import", old(), "--output", out)
    assert (said.code, out.read_text()) == (2, "mine")
    assert "is there already" in said.err


def test_standard_output_is_the_configuration_alone(
    old: Callable[..., Path], htcebridge_command: Callable[..., Any]
) -> None:
    said = htcebridge_command("config", "import", old(script=None))
    assert said.code == 0
    assert "resource" in tomllib.loads(said.out)
    assert "dcgp_lowprio.json: its jobexecutor ./dcgp_lowprio.job cannot be read: " in said.err


def test_two_files_with_one_jobname_are_two_resources_and_a_warning(
    old: Callable[..., Path], load: Load, site: Path
) -> None:
    paid = SCRIPT.replace(" --qos=qos_lowprio", "").replace("=720 ", "=1400 ")
    imported = legacy.import_files([old(), old(name="dcgp", script=paid, max_running=1)])
    assert [note for note in imported.notes if "dcgp_lowprio.json and dcgp.json have the same jobname" in note]
    config = load(filled(imported.text, qos='"normal"'))
    assert {name: each.qos for name, each in config.resources.items()} == {
        "dcgp_lowprio": "qos_lowprio",
        "dcgp": "normal",
    }
    assert {each.job_name for each in config.resources.values()} == {"GP_VO_CVMFS_JOB"}


def test_a_script_without_a_qos_is_never_made_one_that_pays(old: Callable[..., Path]) -> None:
    imported = legacy.import_files([old(script=SCRIPT.replace(" --qos=qos_lowprio", ""))])
    assert "resource.dcgp_lowprio.qos" in imported.missing
    assert (
        '\nqos = "" # FILL IN: Slurm QOS. With none Slurm takes the account\'s default, which is billed\n'
        in imported.text
    )


def test_file_names_become_resource_names(old: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "old" / "other").mkdir(parents=True)
    paths = [old(name=name) for name in ("booster-low prio", "2nodes", "it's é")]
    paths.append(paths[0].rename(tmp_path / "old" / "other" / "booster.low.prio.json"))
    paths[0] = old(name="booster-low prio")
    text = legacy.import_files(paths).text
    assert list(tomllib.loads(text)["resource"]) == [
        "booster_low_prio",
        "resource_2nodes",
        "it_s__",
        "booster_low_prio_2",
    ]


# --------------------------------------------------------------------------- what the script does not say


@pytest.mark.parametrize(
    ("replaced", "by", "missing"),
    [
        ("export account=INF24_lhc_2", "", "account"),
        ("export account=INF24_lhc_2", "account=$(saldo | head -1)", "account"),
        ("export account=INF24_lhc_2", "account=`saldo`", "account"),
        ("--cpus-per-task=$cpus", "", "cpus"),
        ("--cpus-per-task=$cpus", "-c all", "cpus"),
        ("--ntasks=1", "--ntasks=8", "cpus"),
        ("-t $length", "", "walltime"),
        ("-t $length", "-t soon", "walltime"),
        ("-t $length", "-t 5", "walltime"),
        ("-J $jobname", "-J 'two words'", "job_name"),
        ("$EXE", "$EXE --verbose", "executor"),
        ("$EXE", "$(pick one)", "executor"),
    ],
)
def test_what_the_script_does_not_say_is_asked_for(
    old: Callable[..., Path], site: Path, replaced: str, by: str, missing: str
) -> None:
    assert replaced in SCRIPT
    head, _, tail = SCRIPT.rpartition(replaced) if replaced == "$EXE" else SCRIPT.partition(replaced)
    imported = legacy.import_files([old(script=head + by + tail)])
    assert set(imported.missing) == {
        "tier1.collector",
        "resource.dcgp_lowprio.memory",
        f"resource.dcgp_lowprio.{missing}",
    }
    assert tomllib.loads(imported.text)["resource"]["dcgp_lowprio"][missing] == ""


@pytest.mark.parametrize(
    "script", [None, "", "#!/bin/bash\nexit 0\n", "sbatch x.sh\n", "echo srun x\n", "srun\n", "srun ''"]
)
def test_without_a_srun_line_everything_of_slurm_is_asked_for(old: Callable[..., Path], script: str | None) -> None:
    imported = legacy.import_files([old(script=script)])
    asked = {key.rpartition(".")[2] for key in imported.missing}
    assert asked == {"collector", "executor", "account", "partition", "qos", "cpus", "memory", "walltime"}
    assert len(imported.notes) == 1
    assert tomllib.loads(imported.text)["resource"]["dcgp_lowprio"]["max_running"] == 2


def test_what_a_pilot_cannot_do_is_said(old: Callable[..., Path], site: Path) -> None:
    script = SCRIPT.replace("srun -A", "srun --exclusive -w lrdn0001 -l -A").replace("-J $jobname", "-J OTHER_NAME")
    (note_name, note_ignored, note_others) = legacy.import_files([old(script=script + "srun -A x y\n")]).notes
    assert "its jobname is GP_VO_CVMFS_JOB, but dcgp_lowprio.job, line 14 says OTHER_NAME: taken" in note_name
    assert note_ignored.endswith("not taken over from dcgp_lowprio.job, line 14: --exclusive --nodelist")
    assert "is the first of several srun lines" in note_others


def test_an_executor_that_is_not_there_is_said(old: Callable[..., Path], tmp_path: Path) -> None:
    (note,) = legacy.import_files([old()]).notes
    assert f"the executor {tmp_path}/work/glidein/wrapper is not there, or not executable" in note


def test_an_unset_variable_stays_for_the_admin_to_set(old: Callable[..., Path]) -> None:
    text = legacy.import_files([old()], {}).text
    resource = tomllib.loads(text)["resource"]["dcgp_lowprio"]
    assert resource["executor"] == "$WORK/glidein/wrapper"
    assert 'export TOKEN="$WORK/glidein/vo.idtoken"' in resource["setup"]


def test_a_relative_executor_is_beside_the_json(old: Callable[..., Path], tmp_path: Path) -> None:
    for written in ("./run.sh", "run.sh", "../old/run.sh", "$PWD/run.sh"):
        text = legacy.import_files([old(script=SCRIPT.replace("export EXE=$SCRIPTS/wrapper", f"EXE={written}"))]).text
        assert tomllib.loads(text)["resource"]["dcgp_lowprio"]["executor"] == f"{tmp_path}/old/run.sh"


@pytest.mark.parametrize(
    ("asked", "memory"),
    [
        ("--mem=494000", "494000M"),
        ("--mem 100G", "100G"),
        ("--mem=2T", "2T"),
        ("--mem=1048576K", "1G"),
        ("--mem-per-cpu=4400", "492800M"),
        ("--mem=0", None),
        ("--mem=lots", None),
    ],
)
def test_memory_is_read_as_slurm_reads_it(old: Callable[..., Path], asked: str, memory: str | None) -> None:
    imported = legacy.import_files([old(script=SCRIPT.replace("--ntasks=1", asked))])
    assert tomllib.loads(imported.text)["resource"]["dcgp_lowprio"]["memory"] == (memory or "")
    assert ("resource.dcgp_lowprio.memory" in imported.missing) == (memory is None)


@pytest.mark.parametrize(
    ("asked", "walltime"),
    [
        ("720", "12h"),
        ("90:30", "1h30m30s"),
        ("12:00:00", "12h"),
        ("1-0", "1d"),
        ("1-12:30", "1d12h30m"),
        ("0-12:00:00", "12h"),
        ("00:45:00", "45m"),
    ],
)
def test_walltimes_are_read_as_slurm_reads_them(old: Callable[..., Path], asked: str, walltime: str) -> None:
    imported = legacy.import_files([old(script=SCRIPT.replace("-t $length", f"-t {asked}"))])
    assert tomllib.loads(imported.text)["resource"]["dcgp_lowprio"]["walltime"] == walltime


@pytest.mark.parametrize(
    ("asked", "gpus", "gres"),
    [
        ("--gres=gpu:4", 4, ["gpu:4"]),
        ("--gres=gpu:a100:2,tmpfs:1t", 2, ["gpu:a100:2", "tmpfs:1t"]),
        ("--gres=gpu", 1, ["gpu"]),
        ("-G 4", 4, []),
        ("--gpus-per-node=a100:3", 3, []),
        ("", 0, []),
    ],
)
def test_gpus_are_counted(old: Callable[..., Path], asked: str, gpus: int, gres: list[str]) -> None:
    imported = legacy.import_files([old(script=SCRIPT.replace("--gres=$space", asked))])
    resource = tomllib.loads(imported.text)["resource"]["dcgp_lowprio"]
    assert (resource["gpus"], resource["gres"]) == (gpus, gres)


# --------------------------------------------------------------------------- strange JSON


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: not JSON"),
        ('{"jobname": "x",\n "max_idle": }', ":2: not JSON: Expecting value at column 14"),
        ("[]", ":1: not a JSON object with the keys jobexecutor, "),
        ("3", ":1: not a JSON object"),
        ("[" * 100_000, ": "),
        ("{}", ": lacks the key jobexecutor, jobname, max_running, max_idle, max_hours"),
        ('{"jobname": "x", "jobname": "y"}', ": the key jobname is there twice"),
        ("\x00\x01", ":1: not JSON"),
    ],
)
def test_a_file_that_is_no_old_configuration_is_one_error_with_its_place(
    htcebridge_command: Callable[..., Any], tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "strange.json"
    path.write_text(text)
    answer = htcebridge_command("config", "import", path)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"htcebridge: {path}{said}")
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00", None])
def test_a_file_that_cannot_be_read_is_said(
    htcebridge_command: Callable[..., Any], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "strange.json"
    if content is not None:
        path.write_bytes(content)
    answer = htcebridge_command("config", "import", path)
    assert answer.code == 2
    assert f"{path}: cannot be read: " in answer.err


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        *(
            (key, value, "a whole number")
            for key in ("max_running", "max_idle")
            for value in ("2", -1, 1.5, True, None)
        ),
        ("max_running", 10**20, "a whole number"),
        *(("max_hours", value, "a number") for value in ("20", -0.5, False, [], 1e300, 10**400)),
        *((key, value, "a text") for key in ("jobname", "jobexecutor") for value in (3, "", "  ", "a\nb", {}, None)),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_line(tmp_path: Path, key: str, value: object, what: str) -> None:
    path = tmp_path / "strange.json"
    path.write_text(json.dumps({**DCGP, key: value}, indent=1))
    line = 2 + list(DCGP).index(key)
    with pytest.raises(ConfigError, match=rf"strange\.json:{line}: {key} is .* should be {what}"):
        legacy.read(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(tmp_path: Path, constant: str) -> None:
    path = tmp_path / "strange.json"
    path.write_text(json.dumps(DCGP).replace('"max_hours": 20', f'"max_hours": {constant}'))
    with pytest.raises(ConfigError, match=r"strange\.json"):
        legacy.read(path)


def test_a_byte_order_mark_and_unknown_keys_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("\ufeff" + json.dumps({**DCGP, "comment": [1]}), encoding="utf-8")
    assert legacy.read(path).max_hours == 20


def test_no_comment_can_become_a_line_of_the_configuration(old: Callable[..., Path]) -> None:
    script = SCRIPT.replace("-J $jobname", "-J $'x\x1b[31m'")
    text = legacy.import_files([old(script=script)]).text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert list(tomllib.loads(text)["resource"]) == ["dcgp_lowprio"]


# --------------------------------------------------------------------------- the shell that is understood


def launch(text: str, *arguments: str, **environment: str) -> Launch:
    found = legacy_script.parse(text, arguments, "/old", environment)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "line",
    [
        "srun -A acc -p part -c 4 ./x",
        "srun -Aacc -ppart -c4 ./x",
        "srun --account=acc --partition=part --cpus-per-task=4 ./x",
        "srun --account acc --partition part --cpus-per-task 4 -- ./x",
        "/usr/bin/srun -A acc -l -p part --exclusive -c 4 ./x > log 2>&1 &",
        "nohup srun -A acc -p part -c 4 ./x 2> err",
        "srun -A acc -p part -c 4 ./x >& log",
        "cd /tmp && srun -A acc -p part -c 4 ./x | tee log",
        "if true; then srun -A acc -p part -c 4 ./x; fi",
        "(srun -A acc -p part -c 4 ./x)",
        "A=acc; srun -A $A -p 'part' -c \"4\" ./x",
        "OPTS='-A acc -p part'\nsrun $OPTS -c 4 ./x",
        "A=acc\nB=${A}\nsrun -A ${B} -p ${P:-part} -c ${C-4} ./x",
        "srun -A acc \\\n  -p part \\\n  -c 4 ./x",
        "A=wrong\nA=acc # right\nsrun -A $A -p part -c 4 ./x # -A other",
        'OPTS="-A acc \\\n  -p part"\nSRUN="srun $OPTS"\n$SRUN -c $((2+2)) -c 4 ./x',
        "start() { srun -A acc -p part -c 4 ./x; }\nstart",
        "if [[ -n $1 && $2 == c* ]]; then exit; fi\nsrun -A acc -p part -c 4 ./x",
    ],
)
def test_ways_to_write_the_same_srun(line: str) -> None:
    found = launch(line)
    assert {key: found.options.get(key) for key in ("account", "partition", "cpus-per-task")} == {
        "account": "acc",
        "partition": "part",
        "cpus-per-task": "4",
    }
    assert (found.executor, found.arguments) == ("./x", ())


@pytest.mark.parametrize(
    "script",
    [
        "A='x  y'; B=\"it's $A # no\"; export C=$B",
        "export C=a#b D='#' # comment",
        'export C="say \\"hi\\" $W"',
        "export C='$W' D=\"$W\"",
        "export C=$W/x D=${W}y E=${NONE:-z} F=${W:-z}",
        "C=1\nexport C\nC=2",
        "export C=1; D=2",
        "export C='a\\b' D=a\\ b",
        'export C=x;export D="$C;$C"',
        "export C=\"(a)\" D='a;b&c|d'",
    ],
)
def test_exports_give_what_bash_would_have_given(script: str) -> None:
    names = "for name in C D E F; do printf '%s=%s\\n' $name \"$(printenv $name)\"; done"

    def bash(text: str) -> str:
        return subprocess.run(
            ["bash", "-c", f"{text}\n{names}"],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "/usr/bin:/bin", "W": "/w w"},
        ).stdout

    exports = launch(f"{script}\nsrun ./x", W="/w w").exports
    # '$W' in single quotes is the one thing that is not kept apart.
    assert bash("\n".join(exports)) == bash(script).replace("C=$W\n", "C=/w w\n")


def test_a_variable_of_the_node_is_left_to_the_node() -> None:
    found = launch("export D=$TMPDIR/$SLURM_JOBID E=$W\nsrun ./x", TMPDIR="/edge", SLURM_JOBID="1", W="/w")
    assert found.exports == ('export D="$TMPDIR/$SLURM_JOBID"', "export E=/w")


def test_a_command_substitution_is_left_to_the_node() -> None:
    assert launch("export D=$(hostname -s | tr a b)\t# why\nsrun ./x").exports == ("export D=$(hostname -s | tr a b)",)


def test_arguments_of_the_job_executor_are_its_variables() -> None:
    assert launch('srun -A "$1" -p ${2} ./x', "acc", "part").options == {"account": "acc", "partition": "part"}


@pytest.mark.parametrize(
    "text", ["echo 'open\nsrun -A x ./y\n", 'echo "open\n', "\\", "srun \\", "$", "${", "`", "\x0bsrun", "srun -"]
)
def test_a_text_that_is_hardly_shell_does_no_harm(text: str) -> None:
    legacy_script.parse(text, (), "/old", {})


@pytest.mark.parametrize(
    "many", ["(", "$(", "$(()", "${x:-", "`", "\"'", "$A ", "A=x\n", "a=", "<<A ", "{", "[[ ", "case x in "]
)
def test_a_script_may_be_nested_or_long_without_harm(many: str) -> None:
    legacy_script.parse("A=x\necho " + many * (16_000 // len(many)) + "\nsrun ./x\n", (), "/old", {})


def test_a_value_does_not_grow_without_end() -> None:
    found = launch("A=xxxx\n" + "A=$A$A$A$A\n" * 30 + "srun -A $A ./x")
    assert "$A" in found.options["account"]
    assert len(found.options["account"]) <= 4096


def test_what_is_far_too_long_is_refused(old: Callable[..., Path]) -> None:
    (note,) = legacy.import_files([old(script=SCRIPT + "# x\n" * 10_000)]).notes
    assert "cannot be read: 40" in note
    assert "characters are no script of the old tool" in note
