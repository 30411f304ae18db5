"""The venue that the tests of a file share, its prices standing still, and an account of its own for each test."""
import pytest
from execution_rig import Bench, hold_prices, steady_sandbox


@pytest.fixture(scope="module")
def sandbox():
    with steady_sandbox() as s:
        yield s


@pytest.fixture
def bench(sandbox, ledger, valkey_url, tmp_path):
    yield Bench(sandbox, ledger, valkey_url, tmp_path)
    sandbox.control.clear_faults()
    hold_prices(sandbox)
