"""The search: it follows every order of steps, with every fault up to a bound, and each state only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tests.support.checker.steered import Fault, Process


class Choice(NamedTuple):
    """What happens next: a process does what it waits for, perhaps with a fault, or something from outside."""

    who: str
    fault: Fault = ""


class Action(NamedTuple):
    """Something that happens from outside, such as a redelivery."""

    enabled: Callable[[], bool]
    do: Callable[[], None]


class World(Protocol):
    """What is explored, in its first state."""

    processes: Mapping[str, Process]
    actions: Mapping[str, Action]

    def state(self) -> object:
        """Return everything that the processes do not know."""

    def check(self) -> None:
        """Raise AssertionError if something is wrong, which may be so in any state."""

    def check_end(self) -> None:
        """The same when nothing more can happen."""


class Violation(AssertionError):
    """Something is wrong after these steps."""


@dataclass
class Explored:
    """How much was explored."""

    states: int = 0
    runs: int = 0
    ends: int = 0


def explore(make: Callable[[], World], max_faults: int) -> Explored:
    """Follow every course of the world.

    A state is reached by doing its steps in a new world, because a process cannot be copied.

    Raises:
        Violation: A check has failed.
    """
    found, visited = Explored(), set[object]()
    todo: list[tuple[Choice, ...]] = [()]
    while todo:
        found.runs += 1
        todo += _Course(make(), todo.pop(), max_faults).follow(visited, found)
    found.states = len(visited)
    return found


class _Course:
    """One course of a world.

    Arguments:
        world: In its first state.
        steps: Those with which the course begins. It goes on with the first choice in each new state.
        max_faults: Of the whole course.
    """

    def __init__(self, world: World, steps: tuple[Choice, ...], max_faults: int) -> None:
        self._world = world
        self._steps = steps
        self._faults_left = max_faults
        self._trace: list[str] = []

    def follow(self, visited: set[object], found: Explored) -> list[tuple[Choice, ...]]:
        """Follow the course until it ends, or reaches a known state; return the beginnings of others.

        Raises:
            Violation: A check has failed.
        """
        others: list[tuple[Choice, ...]] = []
        try:
            for choice in self._steps:
                self._do(choice)
            done = self._steps
            while (state := self._state()) not in visited:
                visited.add(state)
                self._world.check()
                choices = self._choices()
                if not choices:
                    found.ends += 1
                    self._world.check_end()
                    break
                others += [(*done, choice) for choice in choices[1:]]
                self._do(choices[0])
                done = (*done, choices[0])
        except AssertionError as error:
            raise Violation(f"{error}\n" + "\n".join(self._trace)) from error
        finally:
            for process in self._world.processes.values():
                process.stop()
        return others

    def _state(self) -> object:
        processes = self._world.processes.values()
        known = tuple((one.seen, one.waits_for, tuple(data for _, data in one.late)) for one in processes)
        return self._world.state(), known, self._faults_left

    def _choices(self) -> list[Choice]:
        choices = []
        for name, process in self._world.processes.items():
            if process.waits_for is not None and process.enabled():
                faults: list[Fault] = ["", "lost", "late"] if self._faults_left and process.may_fail else [""]
                choices += [Choice(name, fault) for fault in faults]
            if process.late:
                choices.append(Choice(f"{name}: late request"))
        return choices + [Choice(name) for name, action in self._world.actions.items() if action.enabled()]

    def _do(self, choice: Choice) -> None:
        process = self._world.processes.get(choice.who)
        if process is not None:
            self._trace.append(f"{choice.who:12} {process.waits_for} {choice.fault and f'({choice.fault})'}")
            self._faults_left -= bool(choice.fault)
            process.go_on(choice.fault)
            return
        self._trace.append(choice.who)
        if choice.who in self._world.actions:
            self._world.actions[choice.who].do()
        else:
            self._world.processes[choice.who.partition(":")[0]].deliver_late()
