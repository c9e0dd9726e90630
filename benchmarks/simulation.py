"""A search on many more ranks than there are: a discrete-event simulation of the engine.

What is simulated is `transfer_nas.searching.mpi` as it is: one manager that takes what has arrived,
learns from it, asks, writes both down and replies; workers that evaluate, report, and look for the
reply less and less often; servers of the store, of which each best match asks all. What a step
costs comes from outside: `bench_evolution.py` measures it.

All servers get the same best matches, so the queue for them is simulated once; reads and puts go to
one server each. Not in it: that these three hold each other up, what a network does under load,
ranks that fail, and files that are slow to flush.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import simpy

Process = Generator["simpy.Event", Any, None]

# As in transfer_nas/searching/mpi.py, managing.py and ranks.py.
SHORTEST_SLEEP, LONGEST_SLEEP = 20e-6, 1e-3
MANAGER_SLEEP_SHARE, MANAGER_LONGEST_SLEEP = 2e-3, 10e-3  # share of the shortest evaluations
IN_ADVANCE, MOST_IN_ADVANCE = 20e-3, 16
REPORT_AFTER = 5e-3


@dataclass(frozen=True)
class Costs:
    """What the steps of a search cost, in seconds.

    Attributes
    ----------
    group
        The manager's commit, once for all that arrived together.
    result, job
        What the manager does for a result, and for a job.
    send, receive
        A message, at either end, its coding included.
    latency
        Of a message.
    oversleep
        How much longer than asked for a process sleeps.
    retire
        What the manager does at the store when a member dies.
    request
        What a worker does for each server that a best match asks.
    match, read, put
        How long these occupy a server.
    """

    group: float
    result: float
    job: float
    send: float
    receive: float
    latency: float
    oversleep: float
    retire: float = 0.0
    request: float = 0.0
    match: float = 0.0
    read: float = 0.0
    put: float = 0.0

    @property
    def manager(self) -> float:
        """The manager's work for one evaluation that arrives alone."""
        return self.group + self.result + self.job + self.send + self.receive + self.retire


@dataclass(frozen=True)
class Outcome:
    """What a simulated search did.

    Attributes
    ----------
    seconds
        That it took.
    rate
        Evaluations per second, while there were jobs to hand out.
    training
        How many workers were training on average in that time: neither waiting for jobs nor busy
        with anything else.
    manager_busy
        Share of all the time in which the manager was at work.
    waiting
        Share of all the workers' time that went into waiting for jobs.
    """

    seconds: float
    rate: float
    training: float
    manager_busy: float
    waiting: float


def simulate(
    workers: int,
    evaluations: int,
    costs: Costs,
    duration: Callable[[int], float],
    *,
    workers_per_server: int = 0,
    seed: int = 0,
) -> Outcome:
    """Run a search.

    Parameters
    ----------
    workers
        Ranks that evaluate; the manager is a thread of the first.
    evaluations
        How many.
    costs
        Of the steps.
    duration
        Returns the seconds that the evaluation of a job takes, the store's part aside; jobs count
        from 0.
    workers_per_server
        One server of the store for so many workers; 0: there is no store.
    seed
        Of the choice of servers.
    """
    search = _Search(workers, evaluations, costs, duration, workers_per_server, seed)
    search.world.run(until=search.over)
    return search.outcome()


class _Search:
    def __init__(
        self,
        workers: int,
        evaluations: int,
        costs: Costs,
        duration: Callable[[int], float],
        workers_per_server: int,
        seed: int,
    ) -> None:
        import simpy  # only here: the costs of a search are of use without it

        self.world = simpy.Environment()
        self.over = self.world.event()
        self._costs = costs
        self._rng = np.random.default_rng(seed)
        self._duration = duration
        self._evaluations = evaluations
        self._given = 0
        self._last_given_at = 0.0
        self._trainings: list[tuple[float, float]] = []  # begin, end
        self._manager_busy = 0.0
        self._waited = 0.0
        self._inbox: deque[tuple[int, int]] = deque()  # worker, number of results
        self._arrival = self.world.event()
        self._workers = [_Worker(self.world) for _ in range(workers)]
        count = math.ceil(workers / workers_per_server) if workers_per_server else 0
        # Two threads of a server do what requests ask for.
        self._servers = [simpy.Resource(self.world, capacity=2) for _ in range(count)]
        self._matches = simpy.Resource(self.world, capacity=2)
        self.world.process(self._manage())
        for number in range(workers):
            self.world.process(self._work(number))

    def outcome(self) -> Outcome:
        """Return what happened until most jobs were done."""
        total, steady = self.world.now, self._last_given_at
        trained = sum(max(0.0, min(end, steady) - begin) for begin, end in self._trainings)
        return Outcome(
            seconds=total,
            rate=sum(end <= steady for _, end in self._trainings) / steady,
            training=trained / steady,
            manager_busy=self._manager_busy / total,
            waiting=self._waited / total / len(self._workers),
        )

    def _manage(self) -> Process:
        costs, idle_since = self._costs, self.world.now
        longest, groups = LONGEST_SLEEP, 0
        while True:
            if not self._inbox:
                local = yield self._arrival
                if not local:  # rank 0's own worker wakes the manager; others are looked for
                    idle = self.world.now - idle_since
                    yield self.world.timeout(self._until_look(idle, longest))
            groups += 1
            if groups < 100 or groups % 100 == 0:  # it hardly changes, and has a cost here
                shortest = min(worker.seconds for worker in self._workers)
                longest = MANAGER_SLEEP_SHARE * shortest
                longest = min(max(longest, LONGEST_SLEEP), MANAGER_LONGEST_SLEEP)
            reports = list(self._inbox)
            self._inbox.clear()
            seconds = costs.group
            orders = []
            for number, results in reports:
                worker = self._workers[number]
                worker.in_flight -= results
                wanted = min(worker.depth - worker.in_flight, self._evaluations - self._given)
                jobs = range(self._given, self._given + max(0, wanted))
                self._given += len(jobs)
                worker.in_flight += len(jobs)
                orders.append((number, jobs))
                seconds += results * (costs.result + costs.retire) + len(jobs) * costs.job
                if number:
                    seconds += costs.receive + (costs.send if jobs else 0.0)
            yield self.world.timeout(seconds)
            self._manager_busy += seconds
            for number, jobs in orders:
                if jobs:
                    self._last_given_at = self.world.now
                    self.world.process(self._deliver(number, jobs))
            idle_since = self.world.now

    def _deliver(self, number: int, jobs: range) -> Process:
        if number:
            yield self.world.timeout(self._costs.latency)
        else:
            yield self.world.timeout(0)
        worker = self._workers[number]
        worker.jobs += jobs
        if not worker.ordered.triggered:
            worker.ordered.succeed()

    def _report(self, number: int, results: int) -> Process:
        yield self.world.timeout(self._costs.latency if number else 0)
        self._inbox.append((number, results))
        if not self._arrival.triggered:
            arrival, self._arrival = self._arrival, self.world.event()
            arrival.succeed(number == 0)

    def _work(self, number: int) -> Process:
        worker, costs = self._workers[number], self._costs
        self.world.process(self._report(number, 0))
        results, reported = 0, self.world.now
        while True:
            if not worker.jobs:
                waits_since = self.world.now
                worker.ordered = self.world.event()
                yield worker.ordered
                if number:
                    look = self._until_look(self.world.now - waits_since)
                    yield self.world.timeout(look + costs.receive)
                self._waited += self.world.now - waits_since
            job = worker.jobs.popleft()
            begin = self.world.now
            yield from self._evaluate(job)
            worker.took(self.world.now - begin)
            if len(self._trainings) == self._evaluations:
                self.over.succeed()
            results += 1
            if results >= len(worker.jobs) or self.world.now - reported > REPORT_AFTER:
                if number:
                    yield self.world.timeout(costs.send)
                self.world.process(self._report(number, results))
                results, reported = 0, self.world.now

    def _evaluate(self, job: int) -> Process:
        costs = self._costs
        if self._servers:
            yield self.world.timeout(costs.request * len(self._servers))
            yield from self._serve(self._matches, costs.match)
            holder = self._servers[self._rng.integers(len(self._servers))]
            yield from self._serve(holder, costs.read)
        begin = self.world.now
        yield self.world.timeout(self._duration(job))
        self._trainings.append((begin, self.world.now))
        if self._servers:
            holder = self._servers[self._rng.integers(len(self._servers))]
            yield from self._serve(holder, costs.put)

    def _serve(self, server: simpy.Resource, seconds: float) -> Process:
        with server.request() as turn:
            yield turn
            yield self.world.timeout(seconds)

    def _until_look(self, idle: float, longest: float = LONGEST_SLEEP) -> float:
        """Return the seconds from something's arrival until who polls for it looks again."""
        sleep, looked = SHORTEST_SLEEP, 0.0
        while looked < idle:
            looked += sleep + self._costs.oversleep
            sleep = min(2 * sleep, longest)
            if sleep == longest and idle - looked > longest:
                period = longest + self._costs.oversleep
                looked += period * math.floor((idle - looked) / period)
        return looked - idle


class _Worker:
    def __init__(self, world: simpy.Environment) -> None:
        self.jobs: deque[int] = deque()
        self.in_flight = 0
        self.ordered = world.event()
        self.seconds = math.inf

    @property
    def depth(self) -> int:
        """How many jobs the manager lets it have at once."""
        return 1 + int(IN_ADVANCE / max(self.seconds, IN_ADVANCE / MOST_IN_ADVANCE))

    def took(self, seconds: float) -> None:
        mean = self.seconds + (seconds - self.seconds) / 4
        self.seconds = max(seconds, mean) if math.isfinite(self.seconds) else seconds
