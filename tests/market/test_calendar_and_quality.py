"""The calendar against a slow oracle, summer time, and gap reports on real files."""
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.clock import iso, to_ms
from deskbook.core.errors import BadInput, DataError
from deskbook.market.calendar import TradingCalendar, calendar_config, calendar_for
from deskbook.market.candles import clean_candles
from deskbook.market.quality import gap_report, gap_reports, gap_table
from deskbook.market.simulated import simulate_candles

MINUTE = 60_000
NEW_YORK, CHICAGO = ZoneInfo("America/New_York"), ZoneInfo("America/Chicago")


def fx_open(t):
    d = datetime.fromtimestamp(t / 1000, UTC).astimezone(NEW_YORK)
    m = d.weekday() * 1440 + d.hour * 60 + d.minute
    return not 4 * 1440 + 1020 <= m < 6 * 1440 + 1020


def gold_open(t):
    return fx_open(t) and datetime.fromtimestamp(t / 1000, UTC).astimezone(NEW_YORK).hour != 17


def cme_open(t):
    d = datetime.fromtimestamp(t / 1000, UTC).astimezone(CHICAGO)
    m = d.weekday() * 1440 + d.hour * 60 + d.minute
    return not 4 * 1440 + 960 <= m < 6 * 1440 + 1020 and d.hour != 16


ORACLES = {"EUR_USD": fx_open, "XAU_USD": gold_open, "6EH4": cme_open, "BTCUSDT-PERP": lambda t: True}
moment = st.integers(to_ms("1995-01-01") // MINUTE, to_ms("2045-01-01") // MINUTE).map(lambda m: m * MINUTE)


@pytest.mark.parametrize("name", ORACLES)
@given(at=st.lists(moment, min_size=1, max_size=20))
@settings(max_examples=12, deadline=None)
def test_open_minutes_are_those_of_the_wall_clock(name, at):
    assert calendar_for(name).is_open(at).tolist() == [ORACLES[name](t) for t in at]


@pytest.mark.parametrize("name", ["EUR_USD", "XAU_USD", "6EH4"])
@pytest.mark.parametrize("sunday", ["2025-03-09", "2025-11-02", "2024-03-10", "2006-10-29"])
def test_every_minute_around_the_change_of_the_clocks(name, sunday):
    t = np.arange(to_ms(sunday) - 2 * 86_400_000, to_ms(sunday) + 2 * 86_400_000, MINUTE)
    cal = calendar_for(name)
    assert cal.is_open(t).tolist() == [ORACLES[name](int(x)) for x in t]
    assert cal.expected_minutes(int(t[0]), int(t[-1]) + MINUTE) == sum(ORACLES[name](int(x)) for x in t)


@given(a=moment, minutes=st.integers(0, 5000), name=st.sampled_from(sorted(ORACLES)))
@settings(max_examples=60, deadline=None)
def test_spans_and_closures(a, minutes, name):
    cal, b = calendar_for(name), a + minutes * MINUTE
    opened = [ORACLES[name](t) for t in range(a, b, MINUTE)]
    assert cal.open_between([a], [b])[0] == sum(opened) * MINUTE
    assert cal.crosses_closure([a], [b]).tolist() == [not all(opened)]
    assert sum(y - x for x, y in cal.sessions(a, b)) == sum(opened) * MINUTE
    n, c = int(cal.next_open([a])[0]), int(cal.next_close([a])[0])
    assert ORACLES[name](n) and not any(ORACLES[name](t) for t in range(a, n, MINUTE))
    if name != "BTCUSDT-PERP":
        assert not ORACLES[name](c) and ORACLES[name](c - MINUTE) and all(ORACLES[name](t) for t in range(n, c, 7 * MINUTE))


def test_polars_datetimes_of_any_unit_are_understood():
    t = pl.datetime_range(datetime(2025, 10, 31, 20, 58, tzinfo=UTC), datetime(2025, 10, 31, 21, 1, tzinfo=UTC), "1m", eager=True)
    for unit in ("ms", "us", "ns"):
        assert calendar_for("EUR_USD").is_open(t.dt.cast_time_unit(unit)).tolist() == [True, True, False, False]


def test_configuration(tmp_path):
    f = tmp_path / "calendars.toml"
    f.write_text('[calendars.index]\nweek_open = "Sun 18:00"\nweek_close = "Fri 17:00"\nzone = "America/New_York"\nbreaks = ["16:15-16:30", "17:00-18:00"]\n'
        'closures = [["2025-12-25T00:00:00Z", "2025-12-26T00:00:00Z"]]\n[instruments]\n"SPX500_*" = "index"\n')
    cal = calendar_for("SPX500_USD", f)
    assert cal.expected_minutes("2025-11-04", "2025-11-05") == 1440 - 75 and cal.expected_minutes("2025-12-25", "2025-12-26") == 0
    assert calendar_for("EUR_USD", f).name == "fx"
    for text, words in (("[calendar]", "unknown part"), ("[calendars.x]\nweek_open='Sun 17:00'", "one end"), ("[calendars.x]\nbreaks=['5pm']", "daily break"),
            ("[calendars.x]\nzone='Mars'", "time zone"), ("[calendars.x]\nweek_open='17:00'\nweek_close='Fri 17:00'", "weekday")):
        f.write_text(text + "\n[instruments]\nEUR_USD='x'\n" if "calendars" in text else text)
        with pytest.raises(BadInput, match=words):
            calendar_for("EUR_USD", f)
    f.write_text("[")
    with pytest.raises(DataError, match="not TOML"):
        calendar_config(f)
    with pytest.raises(DataError, match="cannot be read"):
        calendar_config(tmp_path / "absent.toml")


def test_times_that_are_no_milliseconds_are_refused():
    with pytest.raises(BadInput, match="epoch milliseconds"):
        calendar_for("EUR_USD").is_open([1_762_131_780_000_000_000])


@given(st.sets(st.integers(0, 1439), min_size=1, max_size=200), st.sampled_from(["EUR_USD", "XAU_USD", "BTCUSDT-PERP"]))
@settings(max_examples=50, deadline=None)
def test_what_is_removed_is_found(gone, name):
    start = to_ms("2025-11-06T12:00Z")
    t = [start + k * MINUTE for k in range(1440) if calendar_for(name).is_open([start + k * MINUTE])[0]]
    kept = [x for x in t if (x - start) // MINUTE not in gone or x in (t[0], t[-1])]
    df = pl.DataFrame({"instrument": name, "time": kept, **dict.fromkeys(("open", "high", "low", "close"), 1.1)})
    r = gap_report(clean_candles(df).candles)
    assert (r.missing, r.outside, r.duplicates) == (len(t) - len(kept), 0, 0)
    assert int(r.spans["missing"].sum()) == r.missing and r.coverage_frac == pytest.approx(len(kept) / len(t))


def test_duplicates_and_crossed_bars_are_counted():
    df = simulate_candles(["EUR_USD"], "2025-11-04", "2025-11-05")
    raw = pl.concat([df, df.head(3)]).with_columns(crossed=pl.lit(True))
    r = gap_report(raw)
    assert (r.duplicates, r.crossed_frac) == (3, 1.0)
    with pytest.raises(DataError, match="one instrument"):
        gap_report(df.head(0))
    assert gap_table(gap_reports(simulate_candles(["EUR_USD", "USD_JPY"], "2025-11-04", "2025-11-05")))["instrument"].to_list() == ["EUR_USD", "USD_JPY"]


# file: missing, longest, closures, outside; the last column is the count by distance between neighbours that the files are described with
REAL = {"oanda_EURUSD_M1_201405": (474, 6, 2, 0, 474), "oanda_EURUSD_M1_201804": (62, 3, 0, 0, 62), "oanda_XAUUSD_M1_201405": (75, 3, 2, 117, 498),
    "fxcm_EURUSD_M1_201405": (160, 4, 2, 177, 223), "fxcm_EURUSD_M1_201804": (18, 2, 0, 0, 18), "fxcm_USDJPY_M1_201302": (40, 2, 4, 0, 35),
    "cme_6EH4_M1_202401": (423, 6, 4, 0, 1503), "perp_BTC-PERP_M1_202201": (0, 0, 0, 0, 0), "h1/mt_GBPUSD_H1_2015_2022": (323, 33, 374, 0, None)}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data, name):
    raw = pl.read_parquet(shared_data / "candles" / f"{name}.parquet").with_columns(instrument=pl.lit(name.split("_")[1]))
    df = clean_candles(raw).candles
    r = gap_report(df, timeframe=name.split("_")[2])
    minutes = df["time"].diff().dt.total_minutes().drop_nulls()
    by_distance = int((minutes.filter((minutes > 1) & (minutes < 720)) - 1).sum()) if "_M1_" in name else None
    assert (r.missing, r.longest, r.closures, r.outside, by_distance) == REAL[name]


@pytest.mark.data
def test_the_break_of_2014_explains_gold(shared_data):
    raw = pl.read_parquet(shared_data / "candles" / "oanda_XAUUSD_M1_201405.parquet").with_columns(instrument=pl.lit("XAU_USD"))
    r = gap_report(clean_candles(raw).candles, calendar_for("XAU_USD", {"calendars": {"metals": {"breaks": ["17:15-18:00"]}}}))
    assert (r.missing, r.outside) == (123, 0)


def test_iso_of_a_session_edge():
    cal = TradingCalendar("x", "Sun 17:00", "Fri 17:00", "America/New_York")
    assert iso(cal.sessions("2025-03-07", "2025-03-10")[1][0]) == "2025-03-09T21:00:00Z"
    assert timedelta(milliseconds=int(cal.open_between([to_ms("2025-03-03")], [to_ms("2025-03-10")])[0])) == timedelta(hours=4 * 24 + 22 + 3)
