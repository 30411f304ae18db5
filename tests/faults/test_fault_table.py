"""The whole table of the sandbox's faults: one case at least for each, and after each the venue and the ledger agree."""
import asyncio
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "crash")]
from databases import fresh_database
from fault_cases import CASES, run_case
from rig import rig


@pytest.fixture(scope="module")
def one_rig(postgres_url, ledger_template, valkey_url, tmp_path_factory):
    """One sandbox and one ledger for all cases of this file; each case has accounts of its own."""
    with fresh_database(postgres_url, ledger_template) as url, rig(url, valkey_url, tmp_path_factory.mktemp("rig")) as r:
        yield r


def test_every_fault_of_the_sandbox_has_a_case(one_rig):
    assert {c.kind for c in CASES.values()} == set(one_rig.control.ask("GET", "/kinds"))


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("name", CASES)
def test_fault(one_rig, name):
    try:
        wrong = asyncio.run(run_case(one_rig, name))
    finally:
        one_rig.control.clear_faults()
    assert not wrong, "\n".join(wrong)
