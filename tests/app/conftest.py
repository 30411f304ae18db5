"""The venue that the API tests share: its prices stand still."""
import pytest
from api_rig import ApiBench
from execution_rig import steady_sandbox


@pytest.fixture(scope="session")
def api_sandbox():
    with steady_sandbox() as s:
        yield s


@pytest.fixture
def api_bench(api_sandbox, ledger, valkey_url, tmp_path):
    yield ApiBench(api_sandbox, ledger, valkey_url, tmp_path)
    api_sandbox.control.clear_faults()
