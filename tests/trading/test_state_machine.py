"""At least 2,000 sequences of whatever can happen to orders, in two halves that run side by side; see `order_machine`."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from order_machine import RULES, Shared, run_sequences

from deskbook.trading import recorder

# What must have happened, or nothing is known of it. How often differs much from run to run: the generator repeats what it finds interesting.
EVENTS = ["became partially_filled", "became unknown", "became cancelled", "became filled", "resends", "fills", "adopted from others", "message written twice",
          "read twice", "read backwards", "read silent", "read cut", "write lost", "write silent", "write cut", "write error", "write late", "write dropped",
          "write refused", "write busy", "died between two steps", "died before the venue had it", "died after the venue had it", "died before a commit",
          "died after a commit"]


@pytest.fixture
def shared(ledger):
    s = Shared(ledger)
    yield s
    s.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("half", [1, 2])
def test_no_order_is_lost_or_doubled(shared, half):
    run_sequences(shared, 1_000, seed=half)  # the same every time; benchmarks/bench_state_machine.py draws others
    print(dict(sorted(shared.count.items())))
    assert shared.count["sequences"] >= 1_000
    assert shared.count["orders"] > 1_000
    never = [what for what in [*RULES, *EVENTS] if not shared.count[what]]
    assert not never, f"these never happened, so nothing is known of them: {never}"


# ---- the machine finds what is wrong: faults planted in the order path, each of them caught within a few hundred sequences


def counts_a_fill_again_when_it_is_told_again(monkeypatch):
    real = recorder.write_fills

    async def forgetful(tx, deps, currency, rows):
        new = await real(tx, deps, currency, rows)
        for r in rows:
            if r["fill_id"] not in {n["fill_id"] for n in new}:
                await tx.execute("UPDATE positions SET units = units + %s WHERE account = %s AND instrument = %s", (r["units"], deps.account, r["instrument"]))
        return new

    monkeypatch.setattr(recorder, "write_fills", forgetful)


def forgets_what_was_under_way(monkeypatch):
    """An answer that never came is taken for a no."""
    real = recorder.next_state

    def sure(order, finding, *rest, **more):
        return real(order, recorder.Declined("timeout") if isinstance(finding, recorder.Unheard) else finding, *rest, **more)

    monkeypatch.setattr(recorder, "next_state", sure)


# An order sent again without proof of its absence takes thousands of sequences to be found: benchmarks/bench_state_machine.py plants that one.
CAUGHT = {counts_a_fill_again_when_it_is_told_again: "positions", forgets_what_was_under_way: "LOST|rejected|units filled"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plant", CAUGHT, ids=lambda f: f.__name__)
def test_a_planted_fault_is_found(shared, plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=CAUGHT[plant]):
        run_sequences(shared, 1_000, seed=3)
    print(f"found after {shared.count['sequences']} sequences")
