from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from htcebridge.config import file
from htcebridge.config.example import dump, example
from htcebridge.config.file import line_of
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError

Load = Callable[[str], Config]


def line_with(text: str, part: str) -> int:
    """The line on which `part` first stands."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def complaint(load: Load, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(text)
    return str(error.value)


# --------------------------------------------------------------------------- good files


def test_designs_example_is_accepted_and_every_key_of_it_arrives(load: Load, design_example: str) -> None:
    config = load(design_example)
    written = tomllib.loads(design_example)
    shown = tomllib.loads(dump(config))
    for table in ("tier1", "grant", "pressure", "pilot"):
        assert {key: shown[table][key] for key in written[table]} == {
            key: "1m" if value == "60s" else value for key, value in written[table].items()
        }
    assert shown["vo"][0].items() >= written["vo"][0].items()
    assert shown["resource"]["dcgp"].items() >= written["resource"]["dcgp"].items()


def test_units_become_values(config: Config) -> None:
    dcgp = config.resources["dcgp"]
    assert (dcgp.memory, dcgp.walltime, dcgp.min_walltime) == (494000, timedelta(hours=12), timedelta(hours=2))
    assert dcgp.disk_mb == 3 * 1024**2
    assert config.pressure.interval == timedelta(seconds=60)


def test_what_config_init_writes_validates(load: Load) -> None:
    assert list(load(example()).resources) == ["dcgp", "booster"]


def test_config_init_leaves_min_walltime_out_and_says_why(load: Load) -> None:
    """Slurm 24.11 gives exactly --time-min, and pilots of 26.05 leave when it is over."""
    assert [resource.min_walltime for resource in load(example()).resources.values()] == [None, None]
    why = re.findall(r"((?:^# .*\n)+)^# min_walltime =$", example(), re.MULTILINE)
    assert len(why) == 2
    assert all("25.05.2" in text and "SLURM_JOB_END_TIME" in text for text in why)


def test_every_commented_key_of_config_init_is_a_real_one_with_its_default(load: Load) -> None:
    commented = re.compile(r"^# (\w+ = .+)$", re.MULTILINE)
    assert len(commented.findall(example())) > 15
    assert load(commented.sub(r"\1", example())) == load(example())


def test_what_config_show_prints_reads_back_as_the_same(load: Load, config: Config) -> None:
    assert load(dump(config)) == config


def test_values_are_frozen(config: Config) -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.resources["dcgp"].cpus = 1


# --------------------------------------------------------------------------- inheritance


def test_a_resource_inherits_the_pilot_and_may_override_it(load: Load, design_example: str) -> None:
    second = design_example.partition("[resource.dcgp]")[2]
    text = design_example + "\n[resource.short]\n" + second + 'idle_timeout = "5m"\n'
    config = load(text)
    assert config.resources["dcgp"].idle_timeout == timedelta(minutes=20)
    assert config.resources["short"].idle_timeout == timedelta(minutes=5)
    assert config.resources["short"].cvmfs == ("cms.cern.ch",)


def test_a_mistake_in_pilot_is_reported_once_and_there(load: Load, design_example: str) -> None:
    text = design_example.replace('idle_timeout = "20m"', 'idle_timeout = "soon"')
    said = complaint(load, text)
    assert len(said.splitlines()) == 1
    assert f":{line_with(text, 'soon')}: pilot.idle_timeout" in said


def test_a_mistake_in_an_override_is_reported_in_the_resource(load: Load, design_example: str) -> None:
    text = design_example + 'idle_timeout = "soon"\n'
    assert f":{line_with(text, 'soon')}: resource.dcgp.idle_timeout" in complaint(load, text)


def test_an_unknown_key_in_pilot_is_reported_in_pilot_alone(load: Load, design_example: str) -> None:
    text = design_example.replace("cvmfs = ", "cvfms = ")
    said = complaint(load, text)
    assert said.splitlines() == [said]
    assert f":{line_with(text, 'cvfms')}: unknown key pilot.cvfms; did you mean cvmfs?" in said


# --------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ('memory = "494000M"', 'memory = "lots"', "resource.dcgp.memory: 'lots' is not a size"),
        ('walltime = "12h"', 'walltime = "long"', "resource.dcgp.walltime: 'long' is not a duration"),
        ("max_running = 100", "max_runing = 100", "unknown key resource.dcgp.max_runing; did you mean max_running?"),
        ("schedds = []", "shedds = []", "unknown key tier1.shedds; did you mean schedds?"),
        ("min_fill = 0.25", "min_fil = 0.25", "unknown key pressure.min_fil; did you mean min_fill?"),
        ("placement = ", "placment = ", "unknown key vo.0.placment; did you mean placement?"),
        ("min_fill = 0.25", "min_fill = 3", "pressure.min_fill: "),
        ("cpus = 112", "cpus = 0", "resource.dcgp.cpus: "),
        ('mode = "demand"', 'mode = "always"', "resource.dcgp.mode: "),
        ('request = "always"', 'request = "never"', "vo.0.request: "),
        ('min_walltime = "2h"', 'min_walltime = "2s"', "resource.dcgp: margin + boot_time leave no time"),
        ('gres = ["tmpfs:3t"]', 'gres = ["tmpfs:many"]', "resource.dcgp: 'many' is not a size"),
        ('partition = "dcgp_usr_prod"', "", "[resource.dcgp] lacks partition (Slurm partition)"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_way_out(
    load: Load, design_example: str, tmp_path: Path, good: str, bad: str, says: str
) -> None:
    text = design_example.replace(good, bad, 1)
    assert text != design_example
    said = complaint(load, text)
    found = re.match(rf"{re.escape(str(tmp_path))}/htcebridge\.toml:(\d+): ", said)
    assert found
    assert says in said
    of_table = "[resource.dcgp]" if says.startswith(("resource.dcgp: ", "[resource.dcgp]")) else bad
    assert int(found[1]) == line_with(text, of_table)


def test_every_mistake_is_listed_in_the_order_of_the_lines(load: Load, design_example: str) -> None:
    text = (
        design_example.replace("cpus = 112", "cpus = -1")
        .replace('interval = "60s"', 'interval = "often"')
        .replace('value = "leonardo"', 'value = "leo nardo"')
    )
    lines = [int(re.search(r":(\d+): ", line)[1]) for line in complaint(load, text).splitlines()]
    assert lines == [line_with(text, part) for part in ("leo nardo", "often", "cpus = -1")]


def test_broken_toml_is_named_with_its_line(load: Load, design_example: str, tmp_path: Path) -> None:
    text = design_example.replace("[grant]", "[grant")
    said = complaint(load, text)
    assert str(tmp_path / "htcebridge.toml") in said
    assert re.search(rf"(:|line ){line_with(text, '[grant')}\b", said)


def test_a_table_that_is_no_table_is_a_clear_error(load: Load, design_example: str) -> None:
    for table in ("tier1", "grant", "pressure", "pilot", "resource", "vo", "demand"):
        text = f"{table} = 5\n" + re.sub(rf"\[+{table}[\].].*?(?=\n\[|\Z)", "", design_example, flags=re.DOTALL)
        assert re.search(rf":1: {table}: ", complaint(load, text))


def test_a_pilot_that_is_no_table_beside_a_resource_with_gaps_is_a_clear_error(load: Load) -> None:
    said = complaint(load, 'pilot = 5\n[tier1]\ncollector = "cm"\n[resource.dcgp]\ncpus = 1\n')
    assert "pilot: " in said
    assert "[resource.dcgp] lacks partition" in said


def test_a_file_without_tier1_says_what_it_lacks(load: Load) -> None:
    assert "the file lacks tier1" in complaint(load, "")


def test_a_vo_that_names_nobody_is_refused(load: Load, design_example: str) -> None:
    text = design_example + '\n[[vo]]\nname = "ghost"\n'
    said = complaint(load, text)
    assert f":{len(text.splitlines()) - 1}: vo.1: names nobody" in said


def test_two_vos_of_one_name_are_refused_whatever_the_case(load: Load, design_example: str) -> None:
    assert "two [[vo]]" in complaint(load, design_example + '\n[[vo]]\nname = "CMS"\nowners = ["x"]\n')


def test_a_file_that_is_not_utf8_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[tier1]\ncollector = "caf\xe9"\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        file.load(path)


# --------------------------------------------------------------------------- values that end up elsewhere


@pytest.mark.parametrize("nasty", ["a b", "a'b", 'a"b', "a\nb", "$(touch X)", "`touch X`", "a;b", "a\\b", "", "-x y"])
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("[resource.dcgp]", "partition"),
        ("[resource.dcgp]", "account"),
        ("[resource.dcgp]", "qos"),
        ("[resource.dcgp]", "job_name"),
        ("[grant]", "attribute"),
        ("[grant]", "value"),
        ("[tier1]", "collector"),
        ("[pressure]", "instance"),
        ("[[vo]]", "name"),
    ],
)
def test_words_that_go_unquoted_into_other_files_are_plain(
    load: Load, design_example: str, table: str, key: str, nasty: str
) -> None:
    raw = tomllib.loads(design_example)
    parts = table.strip("[]").split(".")
    target = raw[parts[0]][parts[1]] if len(parts) == 2 else raw[parts[0]]
    target = target[0] if isinstance(target, list) else target
    target[key] = nasty
    import tomli_w

    said = complaint(load, tomli_w.dumps(raw))
    assert key in said


@pytest.mark.parametrize("key", ["shared_dir", "token_file", "scratch", "condor", "setup", "cvmfs"])
@pytest.mark.parametrize("nasty", ["/a\nb", "/a\rb", "/a\x00b", "/a\x1b[2Jb", "/a\u2028b"])
def test_a_line_break_or_control_character_is_refused_everywhere(
    load: Load, design_example: str, key: str, nasty: str
) -> None:
    import tomli_w

    raw = tomllib.loads(design_example)
    value = f"cvmfs:/cvmfs{nasty}" if key == "condor" else nasty
    raw["pilot"][key] = [value] if key in ("setup", "cvmfs") else value
    assert f"pilot.{key}" in complaint(load, tomli_w.dumps(raw))


@pytest.mark.parametrize("nasty", ["a\nb", "a\x00b"])
def test_a_startd_attribute_with_a_line_break_is_refused_when_the_file_is_read(
    load: Load, design_example: str, nasty: str
) -> None:
    import tomli_w

    raw = tomllib.loads(design_example)
    raw["pilot"]["attributes"] = {"Motto": nasty}
    assert "attributes.Motto" in complaint(load, tomli_w.dumps(raw))


@pytest.mark.parametrize("name", ["a-b", "a b", "1a", "$(X)", "a.b", "a=b"])
def test_a_startd_attribute_needs_an_attributes_name(load: Load, design_example: str, name: str) -> None:
    text = design_example + f'[resource.dcgp.attributes]\n"{name}" = 1\n'
    assert f":{line_with(text, '.attributes]')}" in complaint(load, text) or name in complaint(load, text)


@pytest.mark.parametrize(
    "issuer", ["cms-auth.cern.ch", "https://a b/", 'https://a"b/', "https://a\\b/", "https://a/$(X)"]
)
def test_an_issuer_that_could_end_its_quotes_or_expand_is_refused(load: Load, design_example: str, issuer: str) -> None:
    text = design_example.replace('issuers = ["https://cms-auth.cern.ch/"]', f"issuers = ['{issuer}']")
    assert "vo.0.issuers.0" in complaint(load, text)


def test_route_names_cannot_get_a_dash(load: Load, design_example: str) -> None:
    assert "vo.0.name" in complaint(load, design_example.replace('name = "cms"', 'name = "cms-it"'))


# --------------------------------------------------------------------------- line_of

LAYOUT = """\
# a comment = 1
top = 1
[table]
key = 1
  "quoted" = 2
dotted.inner = 3
spaced . out = 4

[[vo]]
name = "a"
[[vo]]   # the second
name = "b"
[ resource . dcgp ]
gres = [
  "tmpfs:3t",
]
[resource.dcgp.attributes]
Motto = "x"
[resource."other"]
cpus = 1
inline = { partition = "x" }
"""


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("top",), 2),
        (("table",), 3),
        (("table", "key"), 4),
        (("table", "quoted"), 5),
        (("table", "dotted", "inner"), 6),
        (("table", "spaced", "out"), 7),
        (("vo", 0), 9),
        (("vo", 0, "name"), 10),
        (("vo", 1), 11),
        (("vo", 1, "name"), 12),
        (("vo", 1, "absent"), 11),
        (("resource", "dcgp"), 13),
        (("resource", "dcgp", "gres", 0), 14),
        (("resource", "dcgp", "attributes", "Motto"), 18),
        (("resource", "dcgp", "partition"), 13),
        (("resource", "other", "cpus"), 20),
        (("resource", "other", "inline", "partition"), 21),
        (("nowhere",), None),
        (("vo", 2, "name"), None),
    ],
)
def test_a_location_is_found_on_its_line(location: tuple[int | str, ...], line: int | None) -> None:
    assert line_of(LAYOUT, location) == line


# --------------------------------------------------------------------------- which file


def test_the_given_file_comes_before_the_environments_and_the_homes(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = own_home / ".config/htcebridge/htcebridge.toml"
    usual.parent.mkdir(parents=True)
    usual.touch()
    assert file.find(None) == usual
    from_environment, given = tmp_path / "e.toml", tmp_path / "g.toml"
    from_environment.touch()
    given.touch()
    monkeypatch.setenv("HTCEBRIDGE_CONFIG", str(from_environment))
    assert file.find(None) == from_environment
    assert file.find(str(given)) == given


def test_a_named_file_that_is_missing_is_not_replaced_by_another(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = own_home / ".config/htcebridge/htcebridge.toml"
    usual.parent.mkdir(parents=True)
    usual.touch()
    with pytest.raises(ConfigError, match=r"/absent: no such file \(named by --config\)"):
        file.find("/absent")
    monkeypatch.setenv("HTCEBRIDGE_CONFIG", "/absent")
    with pytest.raises(ConfigError, match="named by \\$HTCEBRIDGE_CONFIG"):
        file.find(None)


def test_no_configuration_names_every_place_and_the_way_out() -> None:
    if Path(file.PLACES[1]).is_file():
        pytest.skip("this machine has an /etc/htcebridge/htcebridge.toml")
    with pytest.raises(ConfigError) as error:
        file.find(None)
    for part in ("--config", "$HTCEBRIDGE_CONFIG", *file.PLACES, "htcebridge config init"):
        assert part in str(error.value)


def test_the_home_of_an_unknown_user_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no_such_user_here"):
        file.find("~no_such_user_here/htcebridge.toml")


# --------------------------------------------------------------------------- pilots, connectivity, data


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[connectivity.x]\nendpint = "x:1"\n', "did you mean endpoint"),
        ('[connectivity.x]\nendpoint = "x"\n', r":2: .*'x' is not an address host:port"),
        ('[data]\ncms_sit = "T1"\n', r":2: .*did you mean cms_site"),
        ('[[data.read]]\nname = "a"\nprefix = "ftp://x/"\n', r":3: .*is not a URL such as"),
        ('[[data.read]]\nname = "a"\nprefx = "root://x/"\n', r"did you mean prefix"),
        ('[connectivity.a]\nendpoint = "x:1"\n[[data.read]]\nname = "a"\nprefix = "root://x/"\n', "both have a"),
    ],
)
def test_mistakes_in_the_nodes_surroundings_are_named_with_their_line(
    load: Load, design_example: str, text: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load(f"{text}{design_example}")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("template", '"../x"', "is not a template's name"),
        ("gpu_discovery", '"-extra; touch X"', "is not options"),
        ("bind", '["/cvmfs", "$(x)"]', "is not an absolute path"),
        ("bind", '["/cvmfs", "/home/", "/tmp:/tmp"]', "bind: /home, /tmp would show jobs what they must not see"),
        ("isolation", '"none"\nrequire_isolation = true', 'asks for what isolation = "none" forbids'),
        ("cpus_kept_per_gpu", "50", "keeps 200 of 112 cpus"),
        ("min_scratch", '"4T"', r"min_scratch is more than the pilot's disk \(3T\)"),
        ("vacate_time", '"5m"', "vacate_time is not within margin"),
        ("check_interval", '"0s"', "greater than or equal"),
        ("template", '"x.conf.j2"', "without .conf.j2"),
    ],
)
def test_what_no_pilot_could_be_is_refused(load: Load, design_example: str, key: str, value: str, says: str) -> None:
    more = "gpus = 4\nallow_cpu_jobs = true\n" if key == "cpus_kept_per_gpu" else "gpus = 0\n"
    with pytest.raises(ConfigError, match=says):
        load(design_example.replace("gpus = 0\n", f"{more}{key} = {value}\n"))


@pytest.mark.parametrize("gres", ['"gpu:2"', '"gpu:a100:2"', '"gpu"'])
def test_gpus_and_gres_must_agree(load: Load, design_example: str, gres: str) -> None:
    text = design_example.replace("gpus = 0\n", "gpus = 4\n").replace(
        'gres = ["tmpfs:3t"]', f'gres = [{gres}, "tmpfs:3t"]'
    )
    with pytest.raises(ConfigError, match=r"gres asks for \d GPUs, gpus says 4"):
        load(text)


def test_a_port_is_a_port(load: Load, design_example: str) -> None:
    with pytest.raises(ConfigError, match="a port is a number from 1 to 65535"):
        load(f'[connectivity.x]\nendpoint = "x:99999"\n{design_example}')
