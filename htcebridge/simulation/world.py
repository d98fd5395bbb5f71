"""Jobs, pilots, Slurm and a controller, event by event. Deterministic: equal arguments give an equal result."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from htcebridge.model import Demand, EndedPilot, LivePilot, Outcome, PilotPhase, ResourcePlan, ScheddAnswer
from htcebridge.pilot.exit_codes import PilotExit
from htcebridge.plan.health import NODE_MEMORY_S
from htcebridge.simulation.accounts import Accounts
from htcebridge.simulation.cluster import Partition, paid_nodes
from htcebridge.simulation.interface import Controller, Seen
from htcebridge.simulation.metrics import Meter, Result, Sample, Use, result
from htcebridge.simulation.pool import RETIRE_BEFORE_DEATH_S, Pool, Run, SimPilot
from htcebridge.simulation.random_streams import stream
from htcebridge.simulation.scenario import Scenario
from htcebridge.simulation.show import as_pilot
from htcebridge.simulation.workload import DAY_S, HOUR_S, Job

# A midnight, UTC.
BEGIN = 1_800_057_600
# After the last day the world runs on for so long, without new jobs, to let the last ones be served.
COOL_DOWN_S = 12 * HOUR_S
# NEGOTIATOR_INTERVAL as shipped; Slurm's backfill looks every 30 s (bf_interval).
NEGOTIATOR_S = 60
BACKFILL_S = 30
SAMPLE_S = 300
# A pilot whose check fails: six tries for CVMFS in half a minute, and what the script takes before.
FAILS_AFTER_S = 60


class World:
    """One run. `days` of jobs, then the cool-down."""

    def __init__(self, scenario: Scenario, jobs: Sequence[Job], days: int, controller: Controller, seed: int) -> None:
        self._scenario = scenario
        self._jobs = jobs
        self._controller = controller
        self._until = BEGIN + days * DAY_S + COOL_DOWN_S
        self.meter = Meter()
        self._pool = Pool(scenario.limits, scenario.cpu_jobs, BEGIN)
        self._partitions = {
            name: Partition(name, scenario.weather, node, seed) for name, node in scenario.nodes.items()
        }
        self._delays = stream(seed, "start delays")
        self._boots = stream(seed, "boot times")
        self._pilots: dict[str, SimPilot] = {}
        self._eligible: list[tuple[int, str]] = []
        self._ended: deque[EndedPilot] = deque()
        self._node_failures: deque[EndedPilot] = deque()
        self._accounts = Accounts(self.meter)
        self._backfill_at = 0
        self._submissions = itertools.count(1)
        self._runs = itertools.count(1)
        self._events: list[tuple[int, int, Callable[[int], None]]] = []
        self._order = itertools.count()
        for number, job in enumerate(jobs):
            self._at(BEGIN + job.submitted_s, partial(self._arrive, number, job))
        for name in self._partitions:
            for second, held in paid_nodes(scenario.weather, self._until - BEGIN, seed):
                self._at(BEGIN + second, partial(self._paying, name, held))

    def run(self, progress: Callable[[float], None] = lambda part: None) -> Meter:
        """Let the time pass. `progress` is told which part of it has."""
        self._at(BEGIN, self._negotiate)
        self._at(BEGIN + NEGOTIATOR_S // 2, self._cycle)
        self._at(BEGIN, self._sample)
        while self._events and self._events[0][0] < self._until:
            now, _, act = heapq.heappop(self._events)
            act(now)
            if act == self._sample:
                progress((now - BEGIN) / (self._until - BEGIN))
        self._close()
        progress(1.0)
        return self.meter

    def served_by_some_resource(self) -> dict[int, Job]:
        """The jobs, by number, that a pilot of some resource could take."""
        return {number: job for number, job in enumerate(self._jobs) if self._pool.fits_somewhere(job)}

    def _at(self, when: int, act: Callable[[int], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    # --- the controller ---------------------------------------------------------------------------------------

    def _cycle(self, now: int) -> None:
        plan = self._controller.decide(self.seen(now))
        self.meter.cycles += 1
        for name, order in plan.resources.items():
            self._carry_out(name, order, now)
        self._at(now + self._scenario.interval_s, self._cycle)

    def seen(self, now: int) -> Seen:
        """What a controller may know now."""
        self._forget(now)
        alive = self._pilots.values()
        return Seen(
            now=now,
            demand=Demand(self._pool.groups(now), (ScheddAnswer("simulated", 0.0),)),
            pilots=tuple(as_pilot(pilot, now, self._scenario.boot_timeout_s) for pilot in alive),
            ended=(*self._node_failures, *self._ended),
            live=tuple(
                LivePilot(pilot.id, pilot.resource, pilot.node_name, pilot.started, pilot.joined)
                for pilot in alive
                if pilot.started is not None
            ),
            waiting_cpus=self._pool.waiting_cpus,
        )

    def _forget(self, now: int) -> None:
        """What `follow` forgets: outcomes older than the window, and a node's failures after weeks."""
        while self._ended and self._ended[0].ended <= now - self._scenario.rules.window_s:
            ended = self._ended.popleft()
            if ended.outcome is Outcome.NEVER_JOINED:
                self._node_failures.append(ended)
        while self._node_failures and self._node_failures[0].ended <= now - NODE_MEMORY_S:
            self._node_failures.popleft()

    def _carry_out(self, name: str, order: ResourcePlan, now: int) -> None:
        for pilot_id in order.cancel:
            pilot = self._pilots.get(pilot_id)
            if pilot is not None and pilot.phase is PilotPhase.PENDING:
                self._end(pilot, Outcome.CANCELLED_BY_US, now)
        for pilot_id in order.undrain:
            self._drain(pilot_id, False, now)
        for pilot_id in order.drain:
            self._drain(pilot_id, True, now)
        if order.submit:
            self._submit(name, order, now)

    def _submit(self, name: str, order: ResourcePlan, now: int) -> None:
        number = next(self._submissions)
        limit = self._scenario.limits[name]
        for task in range(1, order.submit + 1):
            pilot = SimPilot(
                id=f"{number}_{task}",
                resource=name,
                size=limit.node,
                submitted=now,
                walltime_s=order.walltime_s or limit.walltime_s,
                time_min_s=order.time_min_s,
                exclude=frozenset(order.exclude),
            )
            self._pilots[pilot.id] = pilot
            delay_s = self._delays.expovariate(1 / max(1, self._scenario.weather.start_delay_s))
            self._at(now + int(delay_s), partial(self._may_start, pilot))
        self.meter.submitted += order.submit
        pending = sum(pilot.phase is PilotPhase.PENDING for pilot in self._pilots.values())
        self.meter.peak_pending = max(self.meter.peak_pending, pending)

    def _drain(self, pilot_id: str, draining: bool, now: int) -> None:
        pilot = self._pilots.get(pilot_id)
        if pilot is None or pilot.joined is None or pilot.draining == draining:
            return
        self._accounts.settle(pilot, now)
        pilot.draining, pilot.shown = draining, None
        self._leave_if_drained(pilot, now)

    # --- Slurm ------------------------------------------------------------------------------------------------

    def _may_start(self, pilot: SimPilot, now: int) -> None:
        if pilot.id in self._pilots:
            pilot.reason, pilot.shown = "Resources", None
            heapq.heappush(self._eligible, (now, pilot.id))
            self._wake_backfill(now)

    def _wake_backfill(self, now: int) -> None:
        if self._eligible and self._backfill_at <= now:
            self._backfill_at = now - now % BACKFILL_S + BACKFILL_S
            self._at(self._backfill_at, self._backfill)

    def _backfill(self, now: int) -> None:
        """Start what has room, first come first."""
        left = []
        for came, pilot_id in sorted(self._eligible):
            pilot = self._pilots.get(pilot_id)
            if pilot is None:
                continue
            partition = self._partitions[self._scenario.partitions[pilot.resource]]
            node = partition.place(pilot.id, pilot.size, pilot.exclude)
            if node is None:
                left.append((came, pilot_id))
            else:
                self._start(pilot, partition, node, now)
        self._eligible = left

    def _start(self, pilot: SimPilot, partition: Partition, node: int, now: int) -> None:
        pilot.phase, pilot.started, pilot.accounted, pilot.shown = PilotPhase.BOOTING, now, now, None
        pilot.node, pilot.node_name = node, partition.names[node]
        pilot.ends = now + pilot.walltime_s
        pilot.to_die = pilot.ends - self._scenario.margin_s[pilot.resource]
        self.meter.started += 1
        if node in partition.failing:
            pilot.bad = True
            self._at(now + FAILS_AFTER_S, partial(self._end, pilot, Outcome.NEVER_JOINED, exit_code=PilotExit.NO_CVMFS))
        elif node in partition.mute:
            # The startd runs, reaches nobody, and notices that it has no claim.
            pilot.bad = True
            idle_s = self._scenario.idle_timeout_s[pilot.resource]
            self._at(now + idle_s, partial(self._end, pilot, Outcome.NEVER_JOINED))
        else:
            boot_s = self._scenario.boot_s[pilot.resource] * self._boots.uniform(0.5, 1.5)
            self._at(now + int(boot_s), partial(self._join, pilot))

    def _paying(self, name: str, nodes: int, now: int) -> None:
        for pilot_id in self._partitions[name].hold(nodes):
            self._end(self._pilots[pilot_id], Outcome.PREEMPTED, now)
        self._wake_backfill(now)

    # --- pilots -----------------------------------------------------------------------------------------------

    def _join(self, pilot: SimPilot, now: int) -> None:
        if pilot.id not in self._pilots:
            return
        self._accounts.settle(pilot, now)
        pilot.phase, pilot.joined, pilot.shown = PilotPhase.JOINED, now, None
        self._idle(pilot, now)
        self._at(pilot.to_die - RETIRE_BEFORE_DEATH_S, partial(self._retire, pilot))
        self._at(pilot.to_die, partial(self._end, pilot, Outcome.TIMED_OUT))

    def _retire(self, pilot: SimPilot, now: int) -> None:
        """START is false from now on, which the collector's ad shows."""
        pilot.shown = None

    def _idle(self, pilot: SimPilot, now: int) -> None:
        """STARTD_NOCLAIM_SHUTDOWN begins to count."""
        pilot.idle_since = now
        idle_s = self._scenario.idle_timeout_s[pilot.resource]
        self._at(now + idle_s, partial(self._leave_if_idle, pilot, now))

    def _leave_if_idle(self, pilot: SimPilot, since: int, now: int) -> None:
        if not pilot.running and pilot.idle_since == since:
            self._end(pilot, Outcome.RAN, now)

    def _leave_if_drained(self, pilot: SimPilot, now: int) -> None:
        if pilot.draining and not pilot.running:
            self._end(pilot, Outcome.RAN, now)

    def _end(self, pilot: SimPilot, outcome: Outcome, now: int, exit_code: int = 0) -> None:
        """The pilot is gone. Its jobs wait again, from zero."""
        if self._pilots.pop(pilot.id, None) is None:
            return
        if outcome in (Outcome.RAN, Outcome.TIMED_OUT):
            outcome = Outcome.RAN if pilot.jobs_run else Outcome.NEVER_MATCHED
        if pilot.started is not None:
            self._accounts.settle(pilot, now)
            self._partitions[self._scenario.partitions[pilot.resource]].leave(pilot.id, pilot.node)
            for run in pilot.running.values():
                self._accounts.ran(run, Use.LOST, now)
                self._pool.cluster(run.job).running -= 1
                self._pool.submit(run.number, run.job)
            self.meter.kills += len(pilot.running)
            had_its_chance = pilot.joined is not None and now >= pilot.joined + 2 * NEGOTIATOR_S
            self.meter.never_used += had_its_chance and not pilot.jobs_run
            self.meter.failed += pilot.bad
            self._wake_backfill(now)
        self.meter.preempted += outcome is Outcome.PREEMPTED
        self.meter.cancelled += outcome is Outcome.CANCELLED_BY_US
        self._ended.append(
            EndedPilot(
                id=pilot.id,
                resource=pilot.resource,
                plan_id="simulated",
                outcome=outcome,
                submitted=pilot.submitted,
                started=pilot.started,
                ended=now,
                joined=pilot.joined,
                node=pilot.node_name,
                exit_code=exit_code,
            )
        )

    # --- the pool ---------------------------------------------------------------------------------------------

    def _arrive(self, number: int, job: Job, now: int) -> None:
        self._pool.submit(number, job)

    def _negotiate(self, now: int) -> None:
        self._pool.negotiate(
            (pilot for pilot in self._pilots.values() if pilot.joined is not None),
            now,
            lambda number, job, pilot: self._start_job(number, job, pilot, now),
        )
        self._accounts.jobs_wait(self._pool.waiting_cpus() > 0, self._pilots.values(), now)
        self._at(now + NEGOTIATOR_S, self._negotiate)

    def _start_job(self, number: int, job: Job, pilot: SimPilot, now: int) -> None:
        self._accounts.settle(pilot, now)
        run = Run(number, job, pilot.id, now)
        run_id = next(self._runs)
        pilot.running[run_id] = run
        pilot.jobs_run += 1
        pilot.free, pilot.shown = pilot.free.less(job.shape), None
        self._pool.cluster(job).running += 1
        self.meter.first_starts.setdefault(number, now - BEGIN - job.submitted_s)
        self._at(now + job.runtime_s, partial(self._finish_job, pilot, run_id))

    def _finish_job(self, pilot: SimPilot, run_id: int, now: int) -> None:
        if pilot.id not in self._pilots:
            return
        self._accounts.settle(pilot, now)
        run = pilot.running.pop(run_id)
        pilot.free, pilot.shown = pilot.free.less(run.job.shape, -1), None
        self._pool.cluster(run.job).running -= 1
        self._accounts.ran(run, Use.GOOD, now)
        self.meter.waits.append(run.began - BEGIN - run.job.submitted_s)
        if not pilot.running:
            self._idle(pilot, now)
            self._leave_if_drained(pilot, now)

    # --- the end -----------------------------------------------------------------------------------------------

    def _sample(self, now: int) -> None:
        running = [pilot for pilot in self._pilots.values() if pilot.started is not None]
        held = sum(pilot.size.cpus for pilot in running)
        self.meter.samples.append(
            Sample(
                second=now - BEGIN,
                waiting_cores=self._pool.waiting_cpus(),
                held_cores=held,
                busy_cores=sum(run.job.shape.cpus for pilot in running for run in pilot.running.values()),
                pending_pilots=len(self._pilots) - len(running),
                running_pilots=len(running),
                paid_nodes=sum(len(partition.paid) for partition in self._partitions.values()),
            )
        )
        self._at(now + SAMPLE_S, self._sample)

    def _close(self) -> None:
        """Runs that are under way count as good as far as they got; who waits has waited until now."""
        now = self._until
        for pilot in self._pilots.values():
            self._accounts.settle(pilot, now)
            for run in pilot.running.values():
                self._accounts.ran(run, Use.GOOD, now)
                self.meter.waits.append(run.began - BEGIN - run.job.submitted_s)
        self.meter.waits += self._pool.still_waiting_s(now)


def simulate(
    scenario: Scenario,
    jobs: Sequence[Job],
    days: int,
    controller: Controller,
    seed: int,
    names: tuple[str, str] = ("ours", ""),
    progress: Callable[[float], None] = lambda part: None,
) -> tuple[Result, list[Sample]]:
    """One whole run; `names` are the controller's and the workload's, for the table."""
    began = time.process_time()
    world = World(scenario, jobs, days, controller, seed)
    meter = world.run(progress)
    return result(meter, *names, seed, world.served_by_some_resource(), time.process_time() - began), meter.samples
