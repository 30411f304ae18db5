"""The venue that the API tests share: its prices stand still."""
import pytest
from api_rig import ApiBench
from execution_rig import PRICES, working_day

from deskbook.venues.sandbox.process import sandbox_process


@pytest.fixture(scope="session")
def api_sandbox():
    with sandbox_process(clock="virtual", start=working_day()) as s:
        for name, (bid, ask) in PRICES.items():
            s.control.market("price", name, bid=bid, ask=ask)
        yield s


@pytest.fixture
def api_bench(api_sandbox, ledger, valkey_url, tmp_path):
    yield ApiBench(api_sandbox, ledger, valkey_url, tmp_path)
    api_sandbox.control.clear_faults()
