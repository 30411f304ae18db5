"""A manager over a real ledger, a real Valkey and the sandbox venue, gates as a test wants them, and a clock that can be pushed ahead."""
import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import eventually

from deskbook.core.clock import system_clock
from deskbook.core.settings import Settings
from deskbook.stores import live_state
from deskbook.stores.live_state import get_json
from deskbook.trading.manager import Manager
from deskbook.trading.orders import TERMINAL
from deskbook.trading.profile import load_profile

ALWAYS = "global: {session: {start: 00:00, end: 00:00, week: always}}\n"
PAIRS = ("EUR_USD", "USD_JPY")


class Clock:
    """The wall clock, pushed ahead."""

    def __init__(self):
        self.ahead_ms = 0

    def __call__(self):
        return system_clock() + self.ahead_ms


def a_gate(instrument="EUR_USD", asof_ms=None, **more):
    asof = system_clock() - 1_000 if asof_ms is None else asof_ms
    return {"instrument": instrument, "ts_ms": asof - 60_000, "asof_ms": asof, "admit": True, "direction": "BUY", "lambda": 0.4, "hazard": 0.4,
            "hazard_threshold": 0.5, "repetitions": 3, "structure": {"coherence": 0.05}, "regime": {"label": "trend_bull", "confidence": 0.7},
            "components": {"bits_b64": "AAEB"}, "reasons": []} | more


class Rig:
    def __init__(self, desk, profile=ALWAYS, run="manager", clock=None, **settings):
        self.desk, self.live, self.clock = desk, desk.kill.live, clock or Clock()
        self.settings = Settings(home=desk.settings.home, hotband_pairs=PAIRS, **{"entry_cooldown_s": 0, **settings})
        self.profile, self.run = load_profile(profile), run
        self.manager = self.another()

    def another(self):
        """A manager as after a restart: the same account, nothing remembered."""
        return Manager(self.desk, self.live, self.profile, self.settings, self.clock, self.run)

    async def gate(self, instrument="EUR_USD", **more):
        g = a_gate(instrument, **more)
        await live_state.put_gate(self.live, instrument, g["ts_ms"], json.dumps(g), 900, 100)
        return g

    async def round(self, instrument="EUR_USD"):
        """One round; the decision about one pair."""
        return next(r for r in await self.manager.round() if r.instrument == instrument)

    async def rows(self, where="true"):
        return await self.desk.ledger.rows(f"SELECT * FROM decisions WHERE account = %s AND {where} ORDER BY decided_at, instrument", (self.desk.account,))

    async def orders(self, where="true"):
        return await self.desk.ledger.rows(f"SELECT * FROM orders WHERE account = %s AND {where} ORDER BY created_at", (self.desk.account,))

    async def settled(self):
        """Until no order is on its way."""
        async def done():
            return all(o["state"] in TERMINAL for o in await self.orders())
        await eventually(done)

    async def units(self, instrument="EUR_USD"):
        held = await self.desk.ledger.rows("SELECT units FROM positions WHERE account = %s AND instrument = %s", (self.desk.account, instrument))
        return held[0]["units"] if held else 0

    async def entered(self, **more):
        """An entry of ours, filled; its units."""
        await self.gate(**more)
        assert (await self.round()).verdict == "enter", (await self.rows())[-1]["reasons"]
        await self.settled()
        return await self.units()

    async def shown(self, name):
        return await get_json(self.live, name)

    async def flush(self):
        """Everything this desk has in Valkey is gone."""
        keys = [k async for k in self.live.redis.scan_iter(match=self.live.prefix + "*")]
        await self.live.redis.delete(*keys)


@contextlib.asynccontextmanager
async def managed(bench, profile=ALWAYS, run=True, cleared=True, **settings):
    async with bench.desk(run=run, cleared=cleared) as desk:
        await desk.load()
        yield Rig(desk, profile, **settings)
