"""At least 2,000 sequences of whatever can happen to orders, in two halves that run side by side; see `order_machine`."""
import sys
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).resolve().parent))
from order_machine import OrderMachine, Shared, machine_settings


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("half", [1, 2])
def test_no_order_is_lost_or_doubled(ledger, half):
    OrderMachine.shared = shared = Shared(ledger)
    try:
        run_state_machine_as_test(OrderMachine, settings=machine_settings(1_000))
    finally:
        print(dict(shared.count))
        shared.close()
    assert shared.count["sequences"] >= 1_000
    assert shared.count["orders"] > 1_000
