"""What a review of the live desk found in the keys of Valkey."""
import json

import pytest

from deskbook.stores.live_state import gate_history, gate_key, last_gate, put_gate


def gate(ts_ms, **more):
    return json.dumps({"instrument": "EUR_USD", "ts_ms": ts_ms, **more})


NOW = 1_762_336_800_000


def test_the_last_gate_never_goes_back(at):
    async def body(live):
        for ts_ms, admit in ((NOW, True), (NOW + 60_000, False), (NOW, True), (NOW + 60_000, True), (NOW + 60_000, False), (NOW - 60_000, True)):
            await put_gate(live, "EUR_USD", ts_ms, gate(ts_ms, admit=admit), 900, 100)
        ttl = await live.redis.pttl(live.key(gate_key("EUR_USD")))
        return await last_gate(live, "EUR_USD"), [g["ts_ms"] for g in await gate_history(live, "EUR_USD")], ttl
    last, history, ttl = at(body)
    assert (last["ts_ms"], last["admit"]) == (NOW + 60_000, False), "a revision of the same gate counts, an older gate does not"
    assert history == [NOW - 60_000, NOW, NOW + 60_000] and 890_000 < ttl <= 900_000


@pytest.mark.parametrize("held", ["{half", "[1]", "null", '"x"', '{"ts_ms": "late"}', '{"ts_ms": null}', "\x00"])
def test_what_is_no_gate_is_replaced(at, held):
    async def body(live):
        await live.set({gate_key("EUR_USD"): held})
        await put_gate(live, "EUR_USD", NOW, gate(NOW), 900, 100)
        return await last_gate(live, "EUR_USD")
    assert at(body)["ts_ms"] == NOW
