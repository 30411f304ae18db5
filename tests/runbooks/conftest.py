"""A lake of real candles, and one way to run a runbook as `deskbook run` does."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deskbook.core.settings import Settings
from deskbook.market.samples import read_sample
from deskbook.market.simulated import simulate_candles
from deskbook.ops.runbook import live_phrase
from deskbook.ops.runner import RunResult, run_runbook
from deskbook.stores.lake import Lake

ROOT = Path(__file__).resolve().parents[2]
REAL = {
    "oanda_EURUSD_M1_201405": "EUR_USD",
    "oanda_XAUUSD_M1_201405": "XAU_USD",
    "fxcm_EURUSD_M1_201405": "EUR_USD",
    "fxcm_USDJPY_M1_201302": "USD_JPY",
    "perp_BTC-PERP_M1_202201": "BTC-PERP",
}


@pytest.fixture(scope="session")
def real_lake(shared_data, tmp_path_factory) -> str:
    """OANDA and FXCM EUR/USD of May 2014, gold, FXCM USD/JPY of February 2013, a BTC perpetual of January 2022."""
    lake = Lake(tmp_path_factory.mktemp("real") / "lake")
    for name, instrument in REAL.items():
        venue = name.split("_")[0]
        lake.write_candles(read_sample(shared_data / "candles" / f"{name}.parquet", instrument), venue, source=f"{venue} file")
    return lake.url


@pytest.fixture
def small_lake(tmp_path) -> str:
    """Three simulated days of two pairs; tests may change it."""
    lake = Lake(tmp_path / "lake")
    lake.write_candles(simulate_candles(["EUR_USD", "USD_JPY"], "2025-11-03", "2025-11-06", seed=7), "simulated", source="simulated market")
    return lake.url


@pytest.fixture
def run(tmp_path) -> Callable[..., RunResult]:
    """run(runbook, lake, **parameters): a real kernel, reports in the test's own folder; mode live is confirmed."""

    def go(runbook: str, lake: str, resume: str = "", **parameters: Any) -> RunResult:
        settings = Settings(home=tmp_path / "home", reports=tmp_path / "reports", lake=lake)
        confirm = live_phrase(Path(runbook).stem) if parameters.get("mode") == "live" else ""
        return run_runbook(ROOT / "runbooks" / f"{runbook}.ipynb", parameters, settings=settings, confirm=confirm, resume=resume, timeout_s=240)

    return go
