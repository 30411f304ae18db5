"""Kill at every point, restart, look: the same loop for a toy of fifteen lines and for the order path."""
import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from points import Point
from zygote import Ended, Zygote

TRIES = 3
HOLD_S = 0.01  # a request under way arrives within this time on loopback


@dataclass(frozen=True)
class Scenario:
    """What runs and dies, what starts after it, and what must be true then."""
    name: str
    job: str  # "module:function", the run that is killed
    recover: str  # "module:function", the run after the restart
    prepare: Callable[[str], Awaitable[dict]]  # a fresh case: its own accounts, named by the text given
    check: Callable[[dict, Ended], Awaitable[list[str]]]  # what is wrong after recovery, in sentences; [] is right
    between: Callable[[dict], None] = lambda case: None  # done once the process is dead
    timeout_s: float = 30


@dataclass
class Report:
    """What a matrix found."""
    scenario: str
    points: int = 0
    killed: int = 0
    not_reached: list[Point] = field(default_factory=list)
    problems: list[tuple[Point, str]] = field(default_factory=list)
    cpu_s: float = 0.0  # of the processes that were killed and of those that came after

    def __str__(self):
        wrong = "".join(f"\n  killed at {p}: {what}" for p, what in self.problems[:20])
        return (f"{self.scenario}: {self.killed} of {self.points} points killed, {len(self.not_reached)} not reached, "
                f"{len({p for p, _ in self.problems})} with problems{wrong}")


async def record(zygote: Zygote, scenario: Scenario, *, visits: int = 3, lines: bool = False) -> list[Point]:
    """The points that one undisturbed run passes, in order. That run must be right as well."""
    case = await scenario.prepare(f"{scenario.name}-recorded")
    ended = await zygote.run(scenario.job, case, record=visits, lines=lines, timeout_s=scenario.timeout_s)
    ended.value  # noqa: B018 - raises when it failed
    if wrong := await scenario.check(case, await zygote.run(scenario.recover, case, timeout_s=scenario.timeout_s)):
        raise AssertionError(f"{scenario.name} is wrong without any kill: {wrong}")
    return [Point(**p) for p in ended.result["points"]]


async def kill_at(zygote: Zygote, scenario: Scenario, point: Point, number: int, report: Report) -> None:
    """One case of the matrix. A point that depends on the moment gets three runs to come again."""
    for _ in range(TRIES):
        case = await scenario.prepare(f"{scenario.name}-{number}")
        ended = await zygote.run(scenario.job, case, kill=point.to_json(), hold_s=HOLD_S, timeout_s=scenario.timeout_s)
        if ended.status != 0:
            break
    report.points += 1
    if ended.killed:
        report.killed += 1
    elif ended.status == 0:
        report.not_reached.append(point)
    else:
        report.problems.append((point, f"ended with {ended.status} instead of dying: {ended.result.get('error')} {ended.log[-600:]}"))
        return
    await asyncio.to_thread(scenario.between, case)
    again = await zygote.run(scenario.recover, case, timeout_s=scenario.timeout_s)
    report.cpu_s += ended.cpu_s + again.cpu_s
    report.problems += [(point, w) for w in await scenario.check(case, again)]


async def freeze_at(zygote: Zygote, scenario: Scenario, point: Point, number: int, report: Report) -> None:
    """The process does not die but stands still, another takes over and ends everything; then the first wakes up as if nothing had happened."""
    case = await scenario.prepare(f"{scenario.name}-{number}")
    job, ended = zygote.start(scenario.job, case, kill=point.to_json(), hold_s=HOLD_S, **{"with": signal.SIGSTOP})
    report.points += 1
    if not await zygote.stopped(job, ended, scenario.timeout_s):
        zygote.send_signal(job, signal.SIGKILL)
        await ended
        report.not_reached.append(point)
        return
    report.killed += 1
    await asyncio.to_thread(scenario.between, case)
    first = await zygote.run(scenario.recover, case, timeout_s=scenario.timeout_s)
    zygote.send_signal(job, signal.SIGCONT)
    await asyncio.sleep(1.0)  # what it still wants to do it does at once
    zygote.send_signal(job, signal.SIGKILL)
    await ended
    await asyncio.to_thread(scenario.between, case)
    again = await zygote.run(scenario.recover, case, timeout_s=scenario.timeout_s)
    report.problems += [(point, w) for w in await scenario.check(case, first if first.status else again)]


async def run_matrix(zygote: Zygote, scenario: Scenario, points: Sequence[Point], *, at_once: int = 4, one: Callable = kill_at,
                     enough: int | None = None) -> Report:
    """Every point of `points`, a few cases at a time, each killed (or frozen, with `one=freeze_at`); no more once `enough` were reached."""
    report, left = Report(scenario.name), list(enumerate(points))

    async def worker():
        while left and (enough is None or report.killed < enough):
            number, point = left.pop(0)
            await one(zygote, scenario, point, number, report)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return report


def shuffled(points: Sequence[Point], seed: int) -> list[Point]:
    """All points, first visits before later ones, in an order that `seed` decides."""
    chance = random.Random(seed)
    return sorted(points, key=lambda p: (p.visit > 1, chance.random()))


def sample(points: Sequence[Point], most: int, seed: int) -> list[Point]:
    """At most `most` points in their order, chosen by `seed`."""
    chosen = set(shuffled(points, seed)[:most])
    return [p for p in points if p in chosen]
