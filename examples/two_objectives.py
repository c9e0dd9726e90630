"""A search algorithm of one's own: accurate and small networks at once.

    mpiexec -n 3 python -m transfer_nas.evolve --application digits \
        --search examples/two_objectives.py:TwoObjectives --members 24

A child's parent is drawn from the members that no other member beats both in the objective and in
the number of parameters.
"""

from dataclasses import dataclass

from transfer_nas.algorithms import Algorithm, Draws, draw_seed
from transfer_nas.job import Evaluation, Job
from transfer_nas.schema import setting
from transfer_nas.spaces import Space


class TwoObjectives(Algorithm):
    name = "two_objectives"

    @dataclass(frozen=True)
    class Settings:
        members: int = setting(24, "members of the population")

    def __init__(self, space: Space, members: int, seed: int) -> None:
        super().__init__(space, seed)
        self.useful_in_flight = members
        self._members = members
        self._population: list[Evaluation] = []  # oldest first

    @property
    def front(self) -> list[Evaluation]:
        """Those that no other one dominates."""
        return [one for one in self._population if not any(map(dominates(one), self._population))]

    def _new_job(self, id: int, draws: Draws) -> Job:
        seed = draw_seed(draws)
        if id < self._members or not self._population:
            return Job(id, self.space.sample(draws), None, seed)
        parent = self.front[draws.integers(len(self.front))].job
        return Job(id, self.space.mutate(parent.architecture, draws), parent.id, seed)

    def _learn(self, evaluation: Evaluation) -> list[int]:
        self._population.append(evaluation)
        if len(self._population) <= self._members:
            return []
        front = {one.job.id for one in self.front}
        dead = next((one for one in self._population if one.job.id not in front), None)
        dead = dead or self._population[0]  # all are on the front: the oldest goes
        self._population.remove(dead)
        return [dead.job.id]


def dominates(one: Evaluation):
    """Return what tells whether another evaluation is as good in both and better in one."""
    objective, parameters = one.objective, one.measures["parameters"]

    def better(other: Evaluation) -> bool:
        found = other.objective, other.measures["parameters"]
        as_good = found[0] >= objective and found[1] <= parameters
        return as_good and found != (objective, parameters)

    return better
