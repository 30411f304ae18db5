"""Hours against a slow twin that looks at every minute: midnight, weekends, touching days, and no daylight saving anywhere."""
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.core.clock import iso, to_ms
from deskbook.trading.profile import InstrumentProfile, SessionRule
from deskbook.trading.sessions import session_at, week_at

MINUTES = st.integers(0, 1440)
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)).map(lambda d: d.replace(microsecond=0, tzinfo=UTC))


def in_week(t):
    minute = t.weekday()*1440 + t.hour*60 + t.minute
    return minute < 4*1440 + 21*60 or minute >= 6*1440 + 22*60


def is_open(rule, t):
    minute = t.hour*60 + t.minute
    inside = (rule.start_min % 1440 == rule.end_min % 1440 or (rule.start_min <= minute < rule.end_min if rule.start_min < rule.end_min
              else minute >= rule.start_min or minute < rule.end_min))
    return inside and (rule.week == "always" or in_week(t))


def at(rule, when, minutes=5):
    return session_at(InstrumentProfile("EUR_USD", session=rule), to_ms(when), minutes)


@given(MINUTES, MINUTES, st.sampled_from(["fx", "always"]), MOMENTS)
def test_open_and_closed_as_the_slow_twin_says(start, end, week, t):
    rule = SessionRule(start, end, week)
    assert (at(rule, t).reason != "session_closed") == is_open(rule, t)


@given(MINUTES, MINUTES, st.sampled_from(["fx", "always"]), MOMENTS)
def test_the_interval_it_tells_is_the_one_around_now_or_the_next(start, end, week, t):
    rule, now = SessionRule(start, end, week), to_ms(t)
    s = at(rule, t)
    assert s.opens_ms < s.closes_ms and now < s.closes_ms
    assert (s.opens_ms <= now) == (s.reason != "session_closed")
    edges = [datetime.fromtimestamp(x/1000, UTC) for x in (s.opens_ms, s.closes_ms)]
    if s.opens_ms:  # else it never closes
        assert is_open(rule, edges[0]) and not is_open(rule, edges[1])
        assert not is_open(rule, edges[0] - timedelta(minutes=1)) and is_open(rule, edges[1] - timedelta(minutes=1))


@given(MINUTES, MINUTES, MOMENTS, st.floats(0, 600))
def test_an_entry_is_allowed_only_inside_and_with_time_left(start, end, t, minutes):
    s = at(SessionRule(start, end), t, minutes)
    assert s.entry_allowed == (s.reason == "profile_open") and not s.exit_required
    assert s.entry_allowed == (s.opens_ms <= to_ms(t) and s.closes_ms - to_ms(t) > minutes*60_000)
    assert not s.entry_allowed or at(SessionRule(start, end), t, 0).entry_allowed, "a longer exit window never allows more"


@given(MOMENTS)
def test_without_hours_it_is_the_week_and_says_so(t):
    s = at(None, t)
    assert not s.configured and not s.exit_required and (s.reason != "session_closed") == in_week(t)
    assert week_at(to_ms(t)) == (s.opens_ms, s.closes_ms)


@pytest.mark.parametrize("day", ["2025-03-30", "2025-03-09", "2025-10-26", "2025-11-02"])
def test_no_hour_moves_on_a_day_when_clocks_change(day):
    weekday = datetime.fromisoformat(day).replace(tzinfo=UTC)
    for d in (weekday - timedelta(days=3), weekday + timedelta(days=3)):
        s = at(SessionRule(420, 1020), d.replace(hour=7))
        assert (iso(s.opens_ms)[11:16], iso(s.closes_ms)[11:16], s.reason) == ("07:00", "17:00", "profile_open")
    assert iso(week_at(to_ms(weekday.replace(hour=22)))[0]) == f"{day}T22:00:00Z"


def test_a_night_session_ends_with_the_week_and_begins_with_it():
    night = SessionRule(1320, 360)
    assert at(night, "2025-11-06T23:00Z").entry_allowed and at(night, "2025-11-07T05:00Z").entry_allowed
    assert at(night, "2025-11-07T22:30Z").reason == "session_closed", "Friday night is weekend"
    assert iso(at(night, "2025-11-08T00:30Z").opens_ms) == "2025-11-09T22:00:00Z"
    late = SessionRule(1200, 1320)
    assert iso(at(late, "2025-11-07T20:30Z").closes_ms) == "2025-11-07T21:00:00Z" and at(late, "2025-11-07T20:56Z").reason == "session_exit_window"


def test_flat_at_the_close_only_where_the_profile_wants_it():
    rule = SessionRule(420, 1020, exit_at_close=True)
    assert [at(rule, f"2025-11-05T{t}Z").exit_required for t in ("06:59", "07:00", "16:54", "16:55", "17:00")] == [True, False, False, True, True]
