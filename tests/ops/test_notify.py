"""The notifier against a webhook and a syslog that really listen."""
import logging
import time

import pytest
from deskbook.core.settings import Settings
from deskbook.ops.notify import QUEUE, Alert, Delivery, Notifier, Told
from hypothesis import given
from hypothesis import strategies as st
from listeners import Syslog, Webhook

STALE = Alert("gate_stale:EUR_USD", "medium", "EUR_USD has no gate since 09:41 UTC.")


class Now:
    ms = 1_700_000_000_000

    def __call__(self):
        return self.ms


@pytest.fixture
def now():
    return Now()


def settings(hook=None, syslog=None, **more):
    return Settings(slack_webhook=hook.url if hook else None, syslog_address=syslog.address if syslog else "", **more)


def test_told_once_again_when_worse_again_after_an_hour_and_when_over(now):
    with Webhook() as hook, Syslog() as syslog:
        n = Notifier(settings(hook, syslog, alert_repeat_s=3600), now)
        assert n.send(STALE)
        for _ in range(50):
            now.ms += 2000
            assert not n.send(STALE)
        assert n.send(Alert(STALE.fingerprint, "high", "EUR_USD has no gate since an hour."))
        now.ms += 3_600_000
        assert n.send(STALE)
        assert n.send(Alert(STALE.fingerprint, "low", "EUR_USD is back.", resolved=True))
        assert not n.send(Alert(STALE.fingerprint, "low", "EUR_USD is back.", resolved=True))
        assert n.close()
        assert [t.split("]")[0] for t in hook.texts] == ["[medium", "[high", "[medium", "[resolved"]
        assert hook.texts[0] == "[medium] EUR_USD has no gate since 09:41 UTC." and hook.texts[1].endswith("(seen 51 times)")
        lines = [syslog.next() for _ in range(4)]
        assert [line.partition(">")[0] for line in lines] == ["<28", "<26", "<28", "<30"] and " deskbook " in lines[0] and ">1 2023-11-14T2" in lines[0]


def test_a_local_syslog_socket(tmp_path):
    with Syslog(str(tmp_path / "log")) as syslog:
        n = Notifier(settings(syslog=syslog))
        assert n.send(STALE) and n.close()
        assert syslog.next().endswith("]: [medium] EUR_USD has no gate since 09:41 UTC.")


def test_a_webhook_that_fails_is_asked_again():
    with Webhook(500, 503, 200) as hook:
        n = Notifier(settings(hook), pauses_s=(0.01, 0.01, 0.01))
        assert n.send(STALE) and n.close()
        assert [s for s, _ in hook.bodies] == [500, 503, 200]


def test_what_nobody_took_is_told_again_and_the_log_has_it(now, caplog):
    with Webhook(500) as hook:
        n = Notifier(settings(hook), now, pauses_s=(0.01,))
        with caplog.at_level(logging.WARNING):
            assert n.send(STALE)
            end = time.monotonic() + 5
            while n.waiting and time.monotonic() < end:
                time.sleep(0.01)
        assert "alert not delivered by webhook (the webhook answered 500)" in caplog.text and "hook-secret-1" not in caplog.text
        hook.answers[:] = [200]
        assert n.send(STALE), "people do not know it yet"
        assert not n.close(), "and one was lost"
        assert len(hook.texts) == 1


def test_a_webhook_that_hangs_delays_neither_the_worker_nor_syslog():
    with Webhook(3.0) as hook, Syslog() as syslog:
        n = Notifier(settings(hook, syslog))
        began = time.monotonic()
        for i in range(QUEUE + 20):
            n.send(Alert(f"flood:{i}", "low", f"number {i}"))
        assert time.monotonic() - began < 1.0
        assert syslog.next().endswith("[low] number 0") and time.monotonic() - began < 2.0
        n.close(0.1)


def test_nobody_listens():
    n = Notifier(Settings(slack_webhook="http://127.0.0.1:1/x", syslog_address="127.0.0.1:1"), pauses_s=())
    assert n.send(STALE)
    n.close()


def test_no_secret_leaves_the_machine(monkeypatch):
    monkeypatch.setenv("OANDA_API_KEY", "abcdef-0123456789-secret")
    with Webhook() as hook, Syslog() as syslog:
        n = Notifier(settings(hook, syslog))
        n.send(Alert("x", "high", f"the venue refused Bearer abcdef-0123456789-secret; told {hook.url} <!channel>"))
        assert n.close()
        said = hook.texts[0] + syslog.next()
        assert "secret" not in said.replace("[redacted]", "") and "<!channel>" not in hook.texts[0] and "[redacted]" in hook.texts[0]


def test_memory_outlives_the_process(tmp_path, now):
    with Webhook() as hook:
        for _ in range(3):
            n = Notifier(settings(hook), now, memory=tmp_path / "told.json")
            n.send(STALE)
            assert n.close()
        assert len(hook.texts) == 1
        (tmp_path / "told.json").write_text('{"gate_stale:EUR_USD": 7}')
        n = Notifier(settings(hook), now, memory=tmp_path / "told.json")
        assert n.send(STALE) and n.close(), "a broken memory tells once more"


@given(st.lists(st.builds(Alert, st.sampled_from(["a", "b"]), st.sampled_from(["low", "high"]), st.just("x"), st.booleans(), st.integers(1, 9))))
def test_every_sighting_is_told_once_or_still_counted(alerts):
    known = Told(3600.0)
    told = sum(known.due(a, 1000) or 0 for a in alerts)
    assert told + sum(known.seen.values()) == sum(a.count for a in alerts)
    assert set(known.fingerprints()) <= {a.fingerprint for a in alerts if not a.resolved}


@given(st.booleans(), st.booleans())
def test_what_nobody_heard_is_forgotten_and_an_end_is_not_told_again(resolved, heard):
    known, alert = Told(3600.0), Alert("a", "low", "over", resolved)
    assert known.due(STALE, 0) == 1 and known.due(Alert("a", "low", "x"), 0) == 1
    known.due(alert, 0)
    known.finished(alert, heard)
    assert known.fingerprints() == [STALE.fingerprint] + (["a"] if heard and not resolved else [])


def test_who_waits_for_the_count_finds_the_rest_done():
    found = []
    d = Delivery({"slow": lambda alert, text: time.sleep(0.01)}, (), lambda alert, heard: found.append((heard, d.waiting)))
    d.put(STALE, STALE.line())
    assert d.close(5.0) and found == [(True, 1)] and d.waiting == 0
