"""The harness itself: it finds the awaits it should, kills where it says, and its matrix catches a planted fault."""
import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import points as crash_points
import toy_sender
from matrix import Report, Scenario, record, run_matrix, sample
from zygote import Zygote


def toy_scenario(folder: Path, marks: str) -> Scenario:
    async def prepare(name):
        (folder / name).mkdir()
        return {"folder": str(folder / name), "order": "db-1", "marks": marks}

    async def check(case, ended):
        ended.value  # noqa: B018
        sent = toy_sender.lines(Path(case["folder"]) / "venue")
        return [] if sent == ["db-1"] else [f"{len(sent)} orders at the venue"]

    return Scenario(f"toy-{marks}", "toy_sender:submit", "toy_sender:recover", prepare, check)


def toy_matrix(folder: Path, marks: str) -> tuple[list, Report]:
    async def main():
        scenario = toy_scenario(folder, marks)
        async with Zygote(["toy_sender"], ["toy_sender"]) as z:
            seen = await record(z, scenario)
            return seen, await run_matrix(z, scenario, seen)

    return asyncio.run(main())


def test_every_await_gives_its_points(tmp_path):
    seen, report = toy_matrix(tmp_path, "before")
    count = {(p.function, p.kind): 0 for p in seen}
    for p in seen:
        count[p.function, p.kind] += 1
    # append is entered three times and suspends twice each time; send awaits once; submit awaits three times. The coroutines around a
    # suspended one are the same moment, so only append has "during".
    assert count == {("append", "before"): 6, ("append", "during"): 6, ("append", "after"): 6, ("send", "before"): 1, ("send", "after"): 1,
                     ("submit", "before"): 3, ("submit", "after"): 3}
    assert len(set(seen)) == len(seen) == 26
    assert (report.points, report.killed, report.not_reached) == (26, 26, [])
    assert not report.problems, report


def test_a_sender_that_marks_after_sending_is_caught(tmp_path):
    _, report = toy_matrix(tmp_path, "after")
    assert report.killed == report.points
    assert {what for _, what in report.problems} == {"2 orders at the venue"}
    # Exactly the kills between the write to the venue and the end of the journal's write.
    assert {(p.function, p.kind) for p, _ in report.problems} >= {("send", "after"), ("submit", "after"), ("append", "during")}


def test_lines_are_a_denser_matrix(tmp_path):
    async def main():
        scenario = toy_scenario(tmp_path, "after")
        async with Zygote(["toy_sender"], ["toy_sender"]) as z:
            seen = await record(z, scenario, lines=True)
            lined = [p for p in seen if p.kind == "line"]
            assert {p.function for p in lined} >= {"append", "send", "submit"}
            assert len(lined) > 12
            return lined, await run_matrix(z, scenario, lined)

    lined, report = asyncio.run(main())
    assert report.killed == len(lined)
    assert report.problems


def test_a_failed_await_is_a_point():
    async def fails():
        await asyncio.sleep(0)
        raise OSError

    async def caught():
        try:
            await fails()
        except OSError:
            return 1

    seen = []
    with crash_points.Watch([__name__], crash_points.recorder(seen, 3)):
        asyncio.run(caught())
    assert [(p.function.split(".")[-1], p.kind) for p in seen] == [
        ("caught", "before"), ("fails", "before"), ("fails", "during"), ("fails", "after"), ("caught", "raised")], "a coroutine left is no handler"
    with crash_points.Watch([__name__], pytest.fail):
        pass  # nothing of ours ran: nothing is told


def test_a_job_that_raises_hangs_or_prints_is_told_apart():
    async def main():
        async with Zygote(["toy_sender", "json"], ["toy_sender"]) as z:
            raised = await z.run("toy_sender:recover", {})
            assert raised.status == 1
            assert "KeyError" in raised.result["error"]
            hung = await z.run("asyncio:sleep", 60, timeout_s=0.3)
            assert hung.status == 124
            number, ended = z.start("asyncio:sleep", 60)
            z.send_signal(number, 9)
            assert (await ended).killed

    asyncio.run(main())


def test_thinned_keeps_both_ends_of_a_stretch_and_every_suspension():
    async def quick():
        pass

    async def busy():
        await quick()
        await quick()
        await asyncio.sleep(0)
        await quick()

    async def two():
        await asyncio.gather(busy(), busy())

    seen = []
    with crash_points.Watch([__name__], crash_points.recorder(seen, 9)):
        asyncio.run(two())
    kept = crash_points.thinned(seen)
    assert [(p.function.split(".")[-1], p.kind, p.visit) for p in kept] == [
        ("two", "before", 1), ("two", "during", 1),
        ("busy", "before", 1), ("busy", "before", 1), ("busy", "during", 1), ("busy", "before", 2), ("busy", "before", 2), ("busy", "during", 2),
        ("busy", "after", 1), ("busy", "after", 1), ("busy", "after", 2), ("busy", "after", 2), ("two", "after", 1)]
    assert set(kept) < set(seen)
    assert len({p.step for p in seen}) == 6


def test_a_sample_keeps_first_visits_and_changes_with_the_seed():
    every = [crash_points.Point("m", "f", 1, o, "before", "Task", v) for v in (1, 2) for o in range(50)]
    some = sample(every, 60, seed=1)
    assert len(some) == 60
    assert sum(p.visit == 1 for p in some) == 50
    assert some == sample(every, 60, seed=1) != sample(every, 60, seed=2)
    assert sample(every, 200, seed=1) == every
