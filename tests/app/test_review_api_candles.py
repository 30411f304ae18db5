"""Candles that an operator fetches stand where the streamer and the gate worker look for them."""
from api_rig import story

from deskbook.stores.lake import Lake
from deskbook.venues.streamer import lake_venue


def test_play_candles_do_not_stand_among_the_brokers(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            said = (await http.post("/api/candles/fetch", json={"instrument": "EUR_USD", "granularity": "M1", "count": 20})).json()
            assert said["stored_lake"] == 20
            lake = Lake(str(api_bench.home / "lake"))
            held = lake.candles("EUR_USD", timeframe="M1", venue=lake_venue(desk.venue))
            assert lake_venue(desk.venue) == "sandbox" and held.height == 20
            assert lake.write_candles(held, "sandbox", "M1").changed == 0, "the streamer would write the same rows"
            assert not (api_bench.home / "lake" / "candles" / "venue=oanda").exists()
    story(go())
