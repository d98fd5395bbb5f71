"""Why one job does or does not go to the HPC, clause by clause, in the order in which things happen.

What decides is HTCondor's own: the real router says which route it takes, ClassAd matching says what takes the routed
job. The clauses beside it are evaluated one by one to tell a person why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from htcebridge.errors import BridgeError, ConfigError
from htcebridge.routes import jobad, log, policy, trial
from htcebridge.routes.ce import CE, Knob
from htcebridge.routes.jobad import JobAd
from htcebridge.routes.policy import REQUEST
from htcebridge.routes.trial import WORKER, Routed
from htcebridge.templates import classad_string
from htcebridge.tier1.fit import Matcher, bindings, conjuncts, evaluate_in, value_word

if TYPE_CHECKING:
    from htcebridge.config.tables import Config

# The router: idle is what was routed and does not run. Done jobs stay in the Tier-1 queue and count no more.
_ROUTED_AND_LIVE = "JobStatus != 3 && JobStatus != 4"


@dataclass(frozen=True)
class Clause:
    """One condition and what it is for this job: true, false, undefined, error, or a value."""

    text: str
    value: str

    @property
    def holds(self) -> bool:
        return self.value == "true"


@dataclass(frozen=True)
class Step:
    """One thing that happens to the job. `ok` is None where it says nothing on its own."""

    title: str
    ok: bool | None
    clauses: tuple[Clause, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """All steps, and the end of it: the resources that would take the job, or why none would."""

    job: str
    steps: tuple[Step, ...]
    resources: tuple[str, ...]
    sentence: str
    goes: bool


@dataclass(frozen=True)
class Load:
    """The jobs that a route has now, against its limits. `throttle` is the running router's own word for it."""

    jobs: int | None
    idle: int | None
    max_jobs: int
    max_idle: int
    throttle: str | None = None

    @property
    def full(self) -> str:
        """Why the route accepts no more; "" if it does, or nobody knows. A negative max_idle is no limit."""
        if self.jobs is not None and self.jobs >= self.max_jobs:
            return f"it has {self.jobs} jobs, MaxJobs is {self.max_jobs}"
        if self.idle is not None and 0 <= self.max_idle <= self.idle:
            return f"{self.idle} of its jobs wait, MaxIdleJobs is {self.max_idle}"
        if self.throttle not in (None, "none"):
            return f"it is throttled after failures ({self.throttle})"
        return ""


def explain(ce: CE, config: Config, job: JobAd, routed: str | None = None) -> Explanation:
    """Explain one job under the CE's present configuration. `routed` is its routed copy in the Tier-1 queue, if any.

    Raises ConfigError, BridgeError.
    """
    knobs = ce.knobs("JOB_ROUTER_|SUBMIT_REQUIREMENT")
    table = log.parse_counts(_router_table(ce))
    made = trial.route(ce, [job])[job.id]
    if routed is not None:
        made = Routed(jobad.attribute(jobad.attributes_of(routed), "RouteName").strip('"'), routed)
    steps = [*_submit_requirements(ce, knobs, job), _request(config, job), _source_constraint(ce, job)]
    loads = _loads(ce, table)
    steps += _routes(knobs, table, loads, job, made)
    steps.append(_taken(config, made, in_queue=routed is not None))
    fits: tuple[str, ...] = ()
    if made.text:
        templates = trial.templates(config, ce.version())
        matched, why_not = trial.fit(Matcher(templates), made)
        granted = trial.granted(made, config)
        fits = tuple(name for name in matched if granted or name == WORKER)
        for name, ad in templates.items():
            steps += _sides(name, made, ad, name in matched, why_not.get(name, ""))
    resources = tuple(name for name in fits if name != WORKER)
    limit = "" if routed is not None or made.route is None else loads[made.route].full if made.route in loads else ""
    why = _why(config, steps, made, table, limit)
    # What was edited after submission is judged no more.
    refused = routed is None and any(step.title.startswith("submit requirement") and not step.ok for step in steps)
    granted_here = bool(made.text) and trial.granted(made, config) and not limit and not refused
    if granted_here and not config.resources:
        # A CE's own configuration may know nothing of the HPC's nodes.
        sentence = f"gets the grant for {config.grant.value}; no [resource] here says which pilots would take it"
    elif granted_here and resources:
        either = f", or to a {WORKER}, whichever is free first" if WORKER in fits else ""
        sentence = f"goes to {config.grant.value} ({', '.join(resources)}){either}"
    else:
        resources, sentence = (), f"does not go to {config.grant.value}, because {why}"
    goes = granted_here and bool(resources or not config.resources)
    return Explanation(job.label, tuple(steps), resources, f"{job.label} {sentence}.", goes)


def find(ce: CE, job_id: str) -> tuple[JobAd, str | None]:
    """A job of the CE's queue, and its routed copy in the Tier-1's, long form. Raises ConfigError, BridgeError."""
    cluster, _, proc = job_id.partition(".")
    constraint = f"ClusterId == {int(cluster)} && ProcId == {int(proc or 0)}"
    found = jobad.from_queue(ce, constraint)
    if not found:
        raise ConfigError(
            f"{job_id}: not in the CE's queue; condor_ce_history has ended jobs: give the job's ad as a file instead"
        )
    said = ""
    with suppress(BridgeError):
        constraint = f"RoutedFromJobId =?= {classad_string(found[0].id)} && {_ROUTED_AND_LIVE}"
        said = ce.run(["condor_q", *_schedd2(ce), "-allusers", "-long", "-constraint", constraint]).strip()
    return found[0], said or None


# --------------------------------------------------------------------------- the steps


def _submit_requirements(ce: CE, knobs: Mapping[str, Knob], job: JobAd) -> Iterator[Step]:
    """The CE's submit requirements, ours and the site's: MY is the schedd there, TARGET the job."""
    for name in _names(ce, "SUBMIT_REQUIREMENT_NAMES"):
        text = ce.value(f"SUBMIT_REQUIREMENT_{name}")
        if not text:
            continue
        clauses = _clauses(text, "[]", jobad.new_form(job.text))
        ok = _value(text, "[]", jobad.new_form(job.text)) == "true"
        reason = ce.value(f"SUBMIT_REQUIREMENT_{name}_REASON")
        note = "" if ok or not reason else _value(reason, "[]", jobad.new_form(job.text))
        yield Step(f"submit requirement {name}", ok, clauses, note)


def _request(config: Config, job: JobAd) -> Step:
    """Whose job it is, and whether it asks for the grant where the VO wants it asked for."""
    ad = jobad.new_form(job.text)
    clauses, note, ok = [], "no VO of the configuration knows this account or token", False
    for vo in config.vos:
        who = policy.who(vo)
        value = _value(who, ad)
        clauses.append(Clause(f"{vo.name}: {_short(who)}", value))
        if value == "true" and not ok:
            asked = f"{REQUEST} =?= true"
            if config.sites:
                asked += f" || {REQUEST} =?= {classad_string(config.grant.value)}"
            flag = _value(asked, ad)
            ok = vo.request == "always" or flag == "true"
            note = f"a job of {vo.name}; {'it needs no flag' if vo.request == 'always' else 'it must ask by flag'}"
            if vo.request == "flag":
                clauses.append(Clause(f"{vo.name}: {asked}", flag))
    return Step("who it is and what it asks", ok, tuple(clauses), note)


def _source_constraint(ce: CE, job: JobAd) -> Step:
    text = ce.value("JOB_ROUTER_SOURCE_JOB_CONSTRAINT") or "true"
    ad = jobad.new_form(job.text)
    clauses = _clauses(text, ad, ad)
    return Step("JOB_ROUTER_SOURCE_JOB_CONSTRAINT", _value(text, ad, ad) == "true", clauses)


def _routes(
    knobs: Mapping[str, Knob], table: Mapping[str, log.Count], loads: Mapping[str, Load], job: JobAd, made: Routed
) -> Iterator[Step]:
    """Each route that the router has, in its order, up to the one that the job takes."""
    ad = jobad.new_form(job.text)
    for number, name in enumerate(table, 1):
        text = _requirements_of(knobs, name)
        clauses = _clauses(text, ad) if text else ()
        load = loads[name]
        known = f"{load.jobs} jobs of {load.max_jobs}, {load.idle} idle of {load.max_idle}"
        note = known if load.jobs is not None else "how many jobs it has now is not known"
        note += f"; throttle {load.throttle}" if load.throttle is not None else ""
        ok = name == made.route or (_value(text, ad) == "true" if text else True)
        yield Step(f"route {number}, {name}", ok, clauses, f"{note}; FULL: {load.full}" if load.full else note)
        if name == made.route:
            break


def _taken(config: Config, made: Routed, in_queue: bool) -> Step:
    how = "in the Tier-1 queue" if in_queue else "by the real router, limits apart"
    if made.route is None:
        return Step("route taken", False, note=f"none, {how}")
    clauses = tuple(
        Clause(name, jobad.attribute(made.attributes, name) or "undefined")
        for name in (config.grant.attribute, config.grant.vo_attribute)
    )
    problems = "".join(f"; ERROR {error}" for error in made.errors)
    return Step("route taken", bool(made.text) and not made.errors, clauses, f"{made.route}, {how}{problems}")


def _sides(name: str, made: Routed, template: str, matches: bool, why_not: str) -> Iterator[Step]:
    """The routed job's Requirements against a machine, and the machine's START against the job."""
    job = jobad.new_form(made.text)
    wants = jobad.attribute(made.attributes, "Requirements")
    if not wants:
        yield Step(f"{name}: the routed job's Requirements", False, note="it has none, and so matches nothing")
    else:
        wants = str(bindings().ClassAd(job).lookup("Requirements"))
        yield Step(
            f"{name}: the routed job's Requirements",
            _value(wants, job, template) == "true",
            _clauses(wants, job, template),
        )
    machine = bindings().ClassAd(template)
    start = str(machine.lookup("Start"))
    yield Step(f"{name}: START", _value(start, template, job) == "true", _clauses(start, template, job))
    yield Step(f"{name}: matches, both ways", matches, note=why_not)


def _why(config: Config, steps: Sequence[Step], made: Routed, table: Mapping[str, log.Count], limit: str) -> str:
    """The first thing that is in the way."""
    ours = [route.name for route in policy.routes(config) if route.site == config.grant.value]
    refused = next((step for step in steps if step.title.startswith("submit requirement") and not step.ok), None)
    request = next(step for step in steps if step.title.startswith("who it is"))
    source = next(step for step in steps if step.title == "JOB_ROUTER_SOURCE_JOB_CONSTRAINT")
    if refused is not None:
        return f"the CE refuses it: {refused.note or refused.title}"
    if not set(ours) & set(table):
        return "none of the routes that grant it is in the CE (htcebridge routes install)"
    if not request.ok:
        asks = [clause.text for clause in request.clauses if not clause.holds and REQUEST in clause.text]
        return f"{request.note}, and it does not ask ({asks[0]})" if asks else request.note
    if not source.ok:
        return "the CE's JOB_ROUTER_SOURCE_JOB_CONSTRAINT keeps it from being routed"
    if made.route is None:
        return "no route takes it"
    if not made.text:
        return f"route {made.route} fails on it: {'; '.join(made.errors)}"
    if limit:
        return f"route {made.route} takes no more jobs now: {limit}"
    if not trial.granted(made, config):
        return f"it goes by route {made.route}, which grants nothing"
    reasons = [
        f"{step.title.partition(':')[0]}: {step.note or 'no match'}"
        for step in steps
        if step.title.endswith("both ways") and not step.ok and not step.title.startswith(WORKER)
    ]
    return "; ".join(reasons) or "no pilot takes it"


# --------------------------------------------------------------------------- what the CE says


def _router_table(ce: CE) -> str:
    """What the real router loads, as its table of routes: those that it drops are not in it."""
    job = JobAd("none", "1.0", 'ClusterId = 1\nProcId = 0\nOwner = "nobody"\nJobStatus = 1\nJobUniverse = 5')
    ask = ["condor_job_router_info", "-match-jobs", "-jobads", "-", "-ignore-prior-routing", "-diagnostic"]
    return ce.said(ask, stdin=job.text + "\n")


def _loads(ce: CE, table: Mapping[str, log.Count]) -> dict[str, Load]:
    """Route -> its jobs in the Tier-1 queue now, its limits, and its throttle from the JobRouterLog."""
    counts: dict[str, list[str]] | None = None
    with suppress(BridgeError):
        constraint = f"RouteName =!= undefined && RoutedFromJobId =!= undefined && {_ROUTED_AND_LIVE}"
        said = ce.run(
            ["condor_q", *_schedd2(ce), "-allusers", "-constraint", constraint, "-af", "RouteName", "JobStatus"]
        )
        counts = {}
        for line in said.splitlines():
            name, _, status = line.rpartition(" ")
            counts.setdefault(name, []).append(status)
    throttles = _throttles(Path(ce.value("JOB_ROUTER_LOG") or "/nowhere"))
    loads = {}
    for name, limits in table.items():
        states = None if counts is None else counts.get(name, [])
        jobs = None if states is None else len(states)
        idle = None if states is None else sum(state != "2" for state in states)
        loads[name] = Load(jobs, idle, limits.max_jobs, limits.max_idle, throttles.get(name))
    return loads


_THROTTLE = re.compile(r"^(?P<name>\w+) +\S+ +\d+/ *-?\d+ +\d+/ *-?\d+ +(?P<throttle>\S+)", re.MULTILINE)


def _throttles(path: Path) -> dict[str, str]:
    """Route -> throttle, from the running router's last word; nothing where the log cannot be read."""
    with suppress(BridgeError):
        last = log.whole(path).rpartition("routing table is:\n")[2]
        return {row["name"]: row["throttle"] for row in _THROTTLE.finditer(last)}
    return {}


def _schedd2(ce: CE) -> list[str]:
    """The options by which condor_q finds the schedd that gets the routed jobs."""
    name, pool = ce.value("JOB_ROUTER_SCHEDD2_NAME"), ce.value("JOB_ROUTER_SCHEDD2_POOL")
    return [*(["-name", name] if name else []), *(["-pool", pool] if pool else [])]


def _requirements_of(knobs: Mapping[str, Knob], route: str) -> str:
    """A route's REQUIREMENTS as the router takes it: literal text, the last one wins, none with '='."""
    knob = knobs.get(f"JOB_ROUTER_ROUTE_{route}".upper())
    found = re.findall(r"(?im)^[ \t]*REQUIREMENTS[ \t]+(?!=)(.*)$", knob.value if knob else "")
    return found[-1].strip() if found else ""


def _names(ce: CE, knob: str) -> list[str]:
    return [name for name in re.split(r"[,\s]+", ce.value(knob)) if name]


# --------------------------------------------------------------------------- clauses


def _clauses(text: str, own: str, other: str = "[]") -> tuple[Clause, ...]:
    return tuple(Clause(part, _value(part, own, other)) for part in conjuncts(text))


def _value(text: str, own: str, other: str = "[]") -> str:
    """What an expression is between two ads, as HTCondor writes it; "unreadable" if it is no expression."""
    ads = bindings()
    try:
        return value_word(evaluate_in(text, ads.ClassAd(own), ads.ClassAd(other))) if text else "true"
    except Exception:  # classad2 raises its own for a syntax error, Python's for some others
        return "unreadable"


def _short(text: str) -> str:
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text
