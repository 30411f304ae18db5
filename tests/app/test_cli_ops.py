"""`deskbook ops`, `deskbook desk validate` and `deskbook gates analytics` against a real Valkey, a real webhook and a real syslog."""
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from deskbook.app.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
from listeners import Syslog, Webhook

PAIRS = ("EUR_USD", "USD_JPY")
DEAD = "redis://127.0.0.1:1/0"


class Store:
    def __init__(self, url):
        self.url, self.prefix = url, f"t-{secrets.token_hex(6)}:"
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def gate(self, instrument, age_s, admit=True, **more):
        """A gate whose last candle closed so long ago."""
        asof = round(time.time() * 1000) - round(age_s * 1000)
        g = {"instrument": instrument, "ts_ms": asof - 60_000, "asof_ms": asof, "admit": admit, "direction": "BUY", "lambda": 0.02, "hazard": 0.2, "hazard_threshold": 0.5,
             "repetitions": 2, "reasons": [] if admit else ["hazard_exceeds_adaptive_threshold"], "regime": {"label": "trend_bull", "confidence": 0.8},
             "structure": {"coherence": 0.4, "stability": 0.5, "entropy": 0.6}, **more}
        self.redis.set(f"{self.prefix}gate:last:{instrument}", json.dumps(g))
        self.redis.zadd(f"{self.prefix}gate:index:{instrument}", {json.dumps(g): g["ts_ms"]})

    def get(self, key):
        return self.redis.get(self.prefix + key)

    def set(self, key, value):
        self.redis.set(self.prefix + key, value)


@pytest.fixture
def store(valkey_url, monkeypatch):
    s = Store(valkey_url)
    for name, value in {"VALKEY_URL": valkey_url, "DESKBOOK_KEY_PREFIX": s.prefix, "HOTBAND_PAIRS": ",".join(PAIRS)}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLACK_WEBHOOK", "SYSLOG_ADDRESS", "DESKBOOK_ACCOUNT", "STRATEGY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    yield s
    s.redis.close()


def said(capsys, *words):
    capsys.readouterr()
    code = main(list(words))
    return code, json.loads(capsys.readouterr().out)


def test_gate_freshness_has_the_codes_of_the_seed(store, capsys):
    assert said(capsys, "ops", "gate-freshness", "--json")[0] == 2, "none"
    store.gate("EUR_USD", 30)
    code, told = said(capsys, "ops", "gate-freshness", "--json")
    assert code == 3 and {g["instrument"]: g["state"] for g in told["gates"]} == {"EUR_USD": "fresh", "USD_JPY": "missing"}, "one is missing"
    store.gate("USD_JPY", 179)
    assert said(capsys, "ops", "gate-freshness", "--json")[1]["verdict"] == "healthy"
    assert said(capsys, "ops", "gate-freshness", "--json", "--threshold", "170")[0] == 3
    assert said(capsys, "ops", "gate-freshness", "--json", "--threshold", "170", "-i", "EUR_USD")[0] == 0
    store.set("gate:last:USD_JPY", "torn {")
    assert said(capsys, "ops", "gate-freshness", "--json")[0] == 3, "what cannot be read is missing"
    store.gate("USD_JPY", -3600)
    code, told = said(capsys, "ops", "gate-freshness", "--json")
    assert code == 3 and told["gates"][1]["state"] == "future"
    code, told = said(capsys, "ops", "gate-freshness", "--json", "--redis", DEAD)
    assert code == 1 and told["verdict"] == "no connection" and told["error"]
    assert said(capsys, "ops", "gate-freshness", "--json", "--redis", "nonsense")[0] == 1


def test_gate_freshness_while_the_market_is_closed(store, capsys, monkeypatch):
    for moment, code in (("2025-11-08T12:00Z", 0), ("2025-11-09T22:01Z", 0), ("2025-11-05T12:00Z", 3)):
        from deskbook.core.clock import to_ms
        monkeypatch.setattr("deskbook.app.cli_ops.system_clock", lambda m=moment: to_ms(m))
        store.set("gate:last:EUR_USD", json.dumps({"ts_ms": to_ms("2025-11-05T11:00Z")}))
        assert main(["ops", "gate-freshness", "--when-open"]) == code, moment
        assert main(["ops", "gate-freshness"]) == 3, "the older tool did not look at the market"


def test_gate_freshness_tells_people_once_and_when_it_is_over(store, capsys, monkeypatch):
    with Webhook() as hook, Syslog() as syslog:
        monkeypatch.setenv("SLACK_WEBHOOK", hook.url)
        monkeypatch.setenv("SYSLOG_ADDRESS", syslog.address)
        for _ in range(3):
            assert main(["ops", "gate-freshness", "--alert"]) == 2
        for pair in PAIRS:
            store.gate(pair, 30)
        for _ in range(2):
            assert main(["ops", "gate-freshness", "--alert"]) == 0
        assert main(["ops", "gate-freshness", "--alert", "--redis", DEAD]) == 1
        assert [t.partition("]")[0] for t in hook.texts] == ["[high", "[resolved", "[high"] and "cannot be read" in hook.texts[2]
        assert "There is no gate at all" in syslog.next() and "[resolved]" in syslog.next() and "<26>" in syslog.next()


def test_an_alert_that_cannot_be_delivered_changes_no_code(store, capsys, monkeypatch):
    monkeypatch.setenv("SYSLOG_ADDRESS", "nowhere")
    assert main(["ops", "gate-freshness", "--alert"]) == 2
    assert "SYSLOG_ADDRESS 'nowhere' is no address" in capsys.readouterr().err


def test_seed_writes_what_is_missing_and_never_clears(store, capsys):
    code, told = said(capsys, "ops", "aux-keys", "--json")
    assert code == 2 and not any(k["ok"] for k in told["keys"])
    code, told = said(capsys, "ops", "seed", "--json")
    assert code == 0 and "ops:kill_switch" in told["written"] and store.get("ops:kill_switch") == "1"
    assert said(capsys, "ops", "aux-keys", "--json")[0] == 0
    store.set("ops:kill_switch", "0")
    store.set("ops:position_count", "3")
    assert said(capsys, "ops", "seed", "--json")[1]["written"] == [] and store.get("ops:kill_switch") == "0"
    assert main(["ops", "seed", "--force"]) == 0
    assert (store.get("ops:kill_switch"), store.get("ops:position_count")) == ("1", "0")
    meta = json.loads(store.get("ops:kill_switch:meta"))
    assert meta["engaged"] and "--force" in meta["reason"]
    assert main(["ops", "seed", "--redis", DEAD]) == 1


def test_aux_keys_names_what_is_wrong(store, capsys):
    assert main(["ops", "seed"]) == 0
    store.set("ops:kill_switch", "maybe")
    store.set("risk:nav_snapshot", "100000")
    store.redis.delete(store.prefix + "ops:position_count")
    store.redis.lpush(store.prefix + "ops:position_count", "1")
    code, told = said(capsys, "ops", "aux-keys", "--json")
    wrong = {k["key"]: k["problem"] for k in told["keys"] if not k["ok"]}
    assert code == 2 and sorted(wrong) == ["ops:kill_switch", "ops:position_count", "risk:nav_snapshot"] and "cannot be read" in wrong["ops:position_count"]
    assert said(capsys, "ops", "aux-keys", "--json", "--keys", "ops:health,desk:loop")[0] == 0
    assert said(capsys, "ops", "aux-keys", "--json", "--redis", DEAD)[0] == 2


def test_prune_counts_first(store, capsys):
    now, day = round(time.time() * 1000), 86_400_000
    for series in ("EUR_USD:M1", "XAU_USD:S5"):
        store.redis.zadd(f"{store.prefix}md:candles:{series}", {f"{n}": now - n * day for n in range(10)})
    assert said(capsys, "ops", "prune", "--json")[1] == {"keep_days": 0.0, "dry_run": False, "removed": {}}, "nothing is removed unless somebody says so"
    want = {"EUR_USD M1": 4, "XAU_USD S5": 4}
    assert said(capsys, "ops", "prune", "--days", "5.5", "--dry-run", "--json")[1]["removed"] == want
    assert said(capsys, "ops", "prune", "--days", "5.5", "--json")[1]["removed"] == want
    assert store.redis.zcard(f"{store.prefix}md:candles:XAU_USD:S5") == 6
    assert main(["ops", "prune", "--days", "1", "--redis", DEAD]) == 1


def test_analytics(store, capsys):
    assert main(["gates", "analytics"]) == 2
    for age in (30, 90, 150):
        store.gate("EUR_USD", age, admit=age == 30)
    store.gate("EUR_USD", 5 * 3600, admit=False)
    code, told = said(capsys, "gates", "analytics", "--json", "--top-count", "2")
    eur = told["pairs"][0]
    assert code == 0 and (eur["gates"], eur["admitted"]) == (3, 1) and told["rejections"] == [["hazard_exceeds_adaptive_threshold", 2]]
    assert len(told["strongest"]) == 2 and told["strongest"][0]["admit"] and abs(told["strongest"][0]["score"] - 0.89) < 1e-9
    assert said(capsys, "gates", "analytics", "--json", "--lookback-minutes", "0")[1]["pairs"][0]["gates"] == 4
    assert said(capsys, "gates", "analytics", "--json", "--max-signals", "1")[1]["pairs"][0]["gates"] == 1
    assert main(["gates", "analytics"]) == 0 and "33.3%" in capsys.readouterr().out
    assert main(["gates", "analytics", "--redis", DEAD]) == 1


def test_validate_names_everything_that_is_missing(store, capsys, database, ledger, monkeypatch):
    monkeypatch.setenv("TIMESCALE_URL", database)
    code, told = said(capsys, "desk", "validate", "--json")
    wrong = {c["name"] for c in told["checks"] if not c["ok"]}
    assert code == 1 and {"candles", "keys", "ledger"} <= wrong, told
    monkeypatch.setenv("TIMESCALE_URL", ledger)
    code, told = said(capsys, "desk", "validate", "--json", "--redis", DEAD)
    assert code == 1 and {c["name"]: c["ok"] for c in told["checks"]} == {"account": True, "profile": True, "live store": False, "ledger": True, "workers": False}


def test_validate_passes_when_all_is_there(store, capsys, ledger, monkeypatch):
    import psycopg

    from deskbook.app.workers import WORKERS

    monkeypatch.setenv("TIMESCALE_URL", ledger)
    with psycopg.connect(ledger, autocommit=True) as c:
        for w in WORKERS:
            name = "sender:paper" if w == "sender" else f"worker:{w}:paper"
            c.execute("INSERT INTO leases (name, owner, fencing_token, expires_at) VALUES (%s, 'desk1:1:a', 1, now() + interval '1 minute')", (name,))
    assert main(["ops", "seed"]) == 0
    for pair in PAIRS:
        store.gate(pair, 30)
        store.redis.zadd(f"{store.prefix}md:candles:{pair}:M1", {str(n): n * 60_000 for n in range(180)})
    code, told = said(capsys, "desk", "validate", "--json")
    assert code == 0, told
    assert main(["desk", "validate", "--min-candles", "181"]) == 1 and "NO  candles: fewer than 181" in capsys.readouterr().out
    monkeypatch.setenv("STRATEGY_PROFILE", "nowhere.yaml")
    assert main(["desk", "validate"]) == 1


def test_the_same_from_a_shell(store):
    """As cron calls it: another process, its exit code."""
    command = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())", "ops", "gate-freshness"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and "no gate at all" in done.stdout, done.stderr


def test_certificate(store, capsys, tmp_path, monkeypatch):
    def make(days):
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(tmp_path / "k"), "-out", str(tmp_path / "c.pem"), "-days", str(days), "-subj", "/CN=x"]
        subprocess.run(words, check=True, capture_output=True)

    monkeypatch.delenv("TLS_CERTIFICATE", raising=False)
    assert said(capsys, "ops", "certificate", "--json")[0] == 1
    make(20)
    code, told = said(capsys, "ops", "certificate", "--json", "--file", str(tmp_path / "c.pem"))
    assert code == 0 and 19.9 < told["days"] <= 20
    monkeypatch.setenv("TLS_CERTIFICATE", str(tmp_path / "c.pem"))
    assert main(["ops", "certificate", "--days", "21"]) == 3
    assert main(["ops", "certificate", "--file", str(tmp_path / "k")]) == 1
