"""What the workers of one process work with, over a real ledger, a real Valkey and a sandbox of its own."""
import contextlib
import secrets
from datetime import UTC, datetime, timedelta

from deskbook.app.workers import open_parts
from deskbook.core.clock import to_ms
from deskbook.core.settings import Settings
from deskbook.stores.live import open_live
from deskbook.trading.book import ExecutionConfig
from deskbook.trading.desk import AccountSpec
from deskbook.venues.sandbox.process import sandbox_process

QUICK = ExecutionConfig(lease_ttl_s=2.0, send_window_s=2.0, lease_margin_s=0.2, request_timeout_s=1.2, poll_s=0.1, fills_every_s=0.2, reconcile_every_s=60,
                        lookup_pauses_s=(0.05, 0.1, 0.2), absence_grace_s=0.8, block_after_s=1.5, not_sent_pauses_s=(0.05, 0.1, 0.3), drain_s=5)


def working_day() -> str:
    """Ten in the morning of a Tuesday that is over: the market is open whenever the tests run."""
    now = datetime.now(UTC)
    day = now - timedelta(days=(now.weekday() - 1) % 7 or 7)
    return day.replace(hour=10, minute=0, second=0, microsecond=0).isoformat()


class Clock:
    def __init__(self, at):
        self.ms = to_ms(at)

    def __call__(self):
        return self.ms


@contextlib.contextmanager
def a_sandbox():
    with sandbox_process(clock="virtual", speed=1.0, start=working_day(), instruments=["EUR_USD", "USD_JPY"]) as sandbox:
        yield sandbox


@contextlib.asynccontextmanager
async def parts_of(sandbox, ledger_url, valkey_url, home, prefix="", clock=None, **more):
    live = open_live(valkey_url, prefix or f"t-{secrets.token_hex(4)}:")
    settings = Settings(home=home, kill_switch_boot="keep", hotband_pairs="EUR_USD,USD_JPY", **more)
    spec = AccountSpec("paper", "sandbox", sandbox.account, sandbox.token, sandbox.url)
    try:
        async with open_parts(settings, "paper", clock or Clock(working_day()), ledger_url=ledger_url, live=live, spec=spec, config=QUICK) as parts:
            yield parts
    finally:
        await live.aclose()
