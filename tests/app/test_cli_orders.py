"""`deskbook orders`, `positions`, `reconcile`, `risk`, `kill-switch`, `daemon`: against a real ledger, a real Valkey and the sandbox over HTTP."""
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from databases import fresh_database
from deskbook.app.cli import main
from deskbook.ops.order_drills import working_moment
from deskbook.trading import desk
from deskbook.venues.sandbox.process import sandbox_process
from psycopg.rows import dict_row

DEAD = "127.0.0.1:1"  # nobody listens there


@dataclass
class World:
    """One account at a sandbox, and the ledger and store of its desk."""
    sandbox: object
    account: str  # at the venue
    ledger: str
    env: dict
    seen: int = 0
    said: list = field(default_factory=list)

    def rows(self, sql, *params):
        with psycopg.connect(self.ledger, row_factory=dict_row) as c:
            return c.execute(sql, params).fetchall()

    def audits(self):
        """The audit rows about orders since the last call."""
        found = self.rows("SELECT seq, action, metadata FROM ops_audit_events WHERE chain = 'sandbox' AND action LIKE 'order%%' AND seq > %s ORDER BY seq", self.seen)
        self.seen = max([r["seq"] for r in found], default=self.seen)
        return [(r["action"], *r["metadata"].get("reasons", [])) for r in found]

    def at_venue(self):
        return self.sandbox.control.orders(account=self.account)["orders"]

    def requests(self):
        return len(self.sandbox.control.journal(route="orders.create"))


_accounts = iter(range(1, 10**6))


def world(sandbox, ledger, valkey_url, home):
    """A fresh account at the sandbox."""
    account = f"101-001-{next(_accounts):07d}-001"
    sandbox.control.reset()
    sandbox.control.make_account(account)
    return World(sandbox, account, ledger, {
        "DESKBOOK_HOME": str(home), "TIMESCALE_URL": ledger, "VALKEY_URL": valkey_url, "DESKBOOK_KEY_PREFIX": f"t-{secrets.token_hex(6)}:",
        "DESKBOOK_SANDBOX_URL": sandbox.url, "DESKBOOK_ACCOUNT": "sandbox"})


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start=working_moment()) as s:
        yield s


@pytest.fixture
def here(monkeypatch):
    """here(world): the process belongs to this desk."""

    def enter(w):
        for name, value in w.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(desk, "SANDBOX_ACCOUNT", w.account)
        return w

    return enter


@pytest.fixture
def cli(capsys):
    """cli(words...): exit code, stdout (JSON when asked for), stderr."""

    def run(*words):
        capsys.readouterr()
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, json.loads(out, parse_constant=lambda c: pytest.fail(c)) if "--json" in words and out else out, err

    return run


@pytest.fixture
def w(sandbox, ledger, valkey_url, tmp_path, here, cli):
    """A desk of its own, with the kill switch clear."""
    made = here(world(sandbox, ledger, valkey_url, tmp_path / "home"))
    assert cli("kill-switch", "clear", "--why", "test")[0] == 0
    return made


# --- the way of an order ----------------------------------------------------------------------------------------------------------

def test_buy_look_and_close(w, cli):
    code, order, err = cli("orders", "submit", "EUR_USD", "--buy", "2_000", "--key", "first", "--json")
    assert (code, order["state"], order["side"], order["units"], order["filled_units"], err) == (0, "filled", "buy", "2000", "2000", "")
    assert [o["client_id"] for o in w.at_venue()] == [order["client_order_id"]]

    code, listed, _ = cli("orders", "list", "--json")
    assert code == 0 and [o["id"] for o in listed] == [order["id"]]
    for name in (order["id"], order["id"].upper(), "first", order["client_order_id"], order["venue_order_id"]):
        code, shown, _ = cli("orders", "show", name, "--json")
        assert (code, shown["order"]["id"]) == (0, order["id"])
    assert [e["to_state"] for e in shown["events"]] == ["created", "submitting", "filled"]
    assert [(f["units"], f["price"]) for f in shown["fills"]] == [("2000", order["average_price"])]
    assert "filled" in cli("orders", "show", "first")[1] and order["id"] in cli("orders", "list", "--state", "filled")[1]
    assert cli("orders", "list", "--live") == (0, "sandbox has no such orders\n", "")

    code, held, _ = cli("positions", "--json")
    assert [(p["instrument"], p["units"], p["average_price"]) for p in held] == [("EUR_USD", "2000", order["average_price"])]
    assert held[0]["mark"] and held[0]["unrealised_pnl"].startswith("-"), "it would be closed at the bid"
    assert "EUR_USD" in cli("positions")[1]
    code, picture, _ = cli("risk", "--json")
    assert (code, picture["exposures"]["open_positions"], picture["used"]["leverage"]["allowed"]) == (0, 1, "3")
    assert cli("risk", "show")[1].startswith("sandbox: equity ")

    code, part, _ = cli("orders", "close", "EUR_USD", "--units", "500", "--json")
    assert (code, part["state"], part["side"], part["units"], part["reduce_only"], part["kind"]) == (0, "filled", "sell", "500", True, "exit")
    assert cli("orders", "close", "EUR_USD")[0] == 0
    assert cli("positions") == (0, "sandbox holds nothing\n", "")
    code, _, err = cli("orders", "close", "EUR_USD")
    assert code == 1 and "holds nothing" in err
    assert len(w.at_venue()) == 3
    assert cli("reconcile")[:2] == (0, "sandbox: ledger and venue agree; 0 fills were missing, 0 orders of others\n")
    assert cli("ledger", "verify", "--url", w.ledger)[0] == 0


def test_a_sale_is_a_word_and_not_a_sign(w, cli):
    assert cli("orders", "submit", "EUR_USD", "--sell", "1000")[0] == 0
    assert [p["units"] for p in cli("positions", "--json")[1]] == ["-1000"]
    code, _, err = cli("orders", "submit", "EUR_USD")
    assert code == 2 and "--buy or --sell" in err
    assert cli("orders", "submit", "EUR_USD", "--buy", "1", "--sell", "1")[0] == 2


def test_a_key_is_one_order(w, cli):
    words = ("orders", "submit", "EUR_USD", "--buy", "1000", "--key", "once", "--json")
    first, again = cli(*words)[1], cli(*words)
    assert again[0] == 0 and again[1]["id"] == first["id"]
    w.audits()
    code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "2000", "--key", "once")
    assert code == 1 and "belongs to another order" in err and first["id"] in err
    assert w.audits() == [("order.refused", "idempotency_conflict")]
    assert len(w.at_venue()) == 1


def test_a_limit_order_rests_until_it_is_cancelled(w, cli):
    code, order, _ = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--limit", "0.5", "--json")
    assert (code, order["state"], order["time_in_force"], order["price"]) == (0, "open", "GTC", "0.5")
    assert [o["id"] for o in cli("orders", "list", "--live", "--instrument", "EUR_USD", "--json")[1]] == [order["id"]]
    code, gone, _ = cli("orders", "cancel", order["id"], "--json")
    assert (code, gone["state"]) == (0, "cancelled")
    assert cli("orders", "cancel", order["id"])[0] == 0, "a second time changes nothing"
    assert cli("orders", "cancel", "nonsense")[0] == 1
    assert [e["to_state"] for e in cli("orders", "show", order["id"], "--json")[1]["events"]] == ["created", "submitting", "open", "cancel_pending", "cancelled"]


def test_a_dry_run_writes_nothing(w, cli):
    assert cli("reconcile")[0] in (0, 1) and cli("orders", "submit", "EUR_USD", "--buy", "1", "--dry")[0] in (0, 4)
    cli("orders", "submit", "EUR_USD", "--buy", "1000")
    before, sent = w.rows("SELECT count(*) AS n FROM ops_audit_events"), w.requests()
    code, told, _ = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--dry", "--json")
    assert (code, told["decision"], told["reasons"], told["order"]["units"]) == (0, "accepted", [], "1000")
    code, told, _ = cli("orders", "submit", "EUR_USD", "--buy", "90000", "--dry", "--json")
    assert (code, told["decision"], told["reasons"], told["order"]) == (4, "denied", ["max_total_exposure", "max_instrument_exposure"], None)
    assert "Not sent" in cli("orders", "submit", "EUR_USD", "--buy", "1000", "--dry")[1]
    assert w.rows("SELECT count(*) AS n FROM ops_audit_events") == before
    assert len(w.rows("SELECT 1 AS x FROM orders")) == 1 and w.requests() == sent


def test_flattening_asks_for_the_name(w, cli):
    cli("orders", "submit", "EUR_USD", "--buy", "1000")
    cli("orders", "submit", "USD_JPY", "--sell", "1000", "--wait-s", "30")
    cli("orders", "submit", "EUR_USD", "--buy", "500", "--limit", "0.5")
    code, _, err = cli("orders", "flatten")
    assert code == 4 and "--yes-account sandbox" in err
    assert cli("orders", "flatten", "--yes-account", "paper")[0] == 2
    assert len(cli("positions", "--json")[1]) == 2
    code, done, _ = cli("orders", "flatten", "--yes-account", "sandbox", "--json")
    assert (code, done["left"], len(done["cancelled"]), len(done["closed"])) == (0, {}, 1, 2)
    assert cli("positions")[1] == "sandbox holds nothing\n" and cli("orders", "list", "--live")[1] == "sandbox has no such orders\n"


def test_a_venues_rejection_is_no_success(w, cli):
    w.sandbox.control.add_fault("cancel", when={"nth": [1]}, reason="INSUFFICIENT_MARGIN")
    code, out, _ = cli("orders", "submit", "EUR_USD", "--buy", "1000")
    assert code == 1 and "INSUFFICIENT_MARGIN" in out
    assert cli("positions")[1] == "sandbox holds nothing\n"


def test_a_lost_answer_is_one_order(w, cli):
    w.sandbox.control.add_fault("accept_then_drop", route="orders.create", when={"nth": [1]})
    code, order, _ = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--json")
    assert (code, order["state"]) == (0, "filled")
    assert len(w.at_venue()) == 1 and w.requests() == 1
    assert "unknown" in [e["to_state"] for e in cli("orders", "show", order["id"], "--json")[1]["events"]]


# --- bad input: a typed error, an audit row, nothing sent -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def module_world(sandbox, postgres_url, ledger_template, valkey_url, tmp_path_factory):
    with fresh_database(postgres_url, ledger_template) as ledger:
        yield world(sandbox, ledger, valkey_url, tmp_path_factory.mktemp("desk") / "home")


@pytest.fixture
def refusing(module_world, here, cli):
    """One desk for all refusals: none of them changes it."""
    w = here(module_world)
    if not w.said:
        w.sandbox.control.reset()
        assert cli("kill-switch", "clear", "--why", "test")[0] == 0
        assert cli("reconcile")[0] == 0
        w.said.append("ready")
    w.audits()
    before = (len(w.at_venue()), w.requests(), len(w.rows("SELECT 1 AS x FROM orders")), len(w.rows("SELECT 1 AS x FROM outbox")))
    yield w
    assert (len(w.at_venue()), w.requests(), len(w.rows("SELECT 1 AS x FROM orders")), len(w.rows("SELECT 1 AS x FROM outbox"))) == before, "something was sent"


@pytest.mark.parametrize("words, reasons", [
    (("EUR_USD", "--buy", "0"), ["units_zero"]),
    (("EUR_USD", "--sell", "-0"), ["units_negative"]),
    (("EUR_USD", "--buy", "-1000"), ["units_negative"]),
    (("EUR_USD", "--sell", "+1000"), ["units_negative"]),
    (("EUR_USD", "--buy", "NaN"), ["units_not_a_number"]),
    (("EUR_USD", "--buy", "inf"), ["units_not_a_number"]),
    (("EUR_USD", "--buy", "a lot"), ["units_not_a_number"]),
    (("EUR_USD", "--sell", ""), ["units_not_a_number"]),
    (("EUR_USD", "--sell", "1000.5"), ["units_precision"]),
    (("EUR_USD", "--buy", "0.5"), ["units_below_minimum", "units_precision"]),
    (("EUR_USD", "--buy", "1e12"), ["units_above_maximum"]),
    (("EUR_USD", "--buy", "1e999999"), ["units_above_maximum"]),
    (("EUR_USX", "--buy", "1000"), ["instrument_unknown"]),
    (("GER40", "--buy", "1"), ["instrument_unknown"]),
    (("EUR_USD", "--buy", "1000", "--limit", "1.084123"), ["price_off_tick"]),
    (("EUR_USD", "--buy", "1000", "--limit", "-1.08"), ["price_invalid"]),
    (("EUR_USD", "--buy", "1000", "--stop-loss", "1.0000001"), ["stop_price_off_tick"]),
    (("EUR_USD", "--buy", "1000", "--tif", "GTC"), ["time_in_force_not_allowed"]),
    (("EUR_USD", "--sell", "1000", "--reduce-only"), ["exceeds_position"]),
    (("EUR_USD", "--buy", "20000"), ["max_instrument_exposure"]),
])
def test_a_bad_order_is_refused_written_down_and_not_sent(refusing, cli, words, reasons):
    code, out, err = cli("orders", "submit", *words, "--key", (key := secrets.token_hex(4)))
    assert (code, out) == (4, "") and all(f"[{r}]" in err for r in reasons)
    assert refusing.audits() == [("order.refused", *reasons)]
    assert refusing.rows("SELECT metadata->>'key' AS key FROM ops_audit_events ORDER BY chain = 'sandbox' DESC, seq DESC LIMIT 1") == [{"key": key}]


@pytest.mark.parametrize("words, words_of_error", [
    (("EUR_USD", "--buy", "1000", "--limit", "cheap"), "is not a number"), (("EUR_USD", "--buy", "1000", "--key", "a b"), "not usable"),
    (("EUR_USD", "--buy", "1000", "--expires-s", "0"), "no time to wait"), (("--buy", "1000"), "INSTRUMENT")])
def test_words_that_make_no_order(refusing, cli, words, words_of_error):
    code, out, err = cli("orders", "submit", *words)
    assert (code, out) == (2, "") and words_of_error.lower() in err.lower()


def test_an_instrument_that_is_not_on_the_list(refusing, cli):
    assert cli("risk", "set-policy", "allowed_instruments=USD_JPY")[0] == 0
    try:
        refusing.audits()
        assert cli("orders", "submit", "EUR_USD", "--buy", "1000")[0] == 4
        assert refusing.audits() == [("order.refused", "instrument_not_allowed")]
    finally:
        assert cli("risk", "set-policy", "allowed_instruments=")[0] == 0


def test_the_kill_switch_refuses(refusing, cli):
    assert cli("kill-switch", "engage", "--why", "a test")[0] == 0
    try:
        code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "1000")
        assert code == 4 and "[kill_switch]" in err
        assert ("order.refused", "kill_switch") in refusing.audits()
        state = cli("kill-switch", "status", "--json")[1]
        assert (state["engaged"], state["why"], state["local"], state["stored"]) == (True, "a test", "on", "on")
    finally:
        assert cli("kill-switch", "clear", "--why", "the test is over")[0] == 0


def test_a_wrong_token(refusing, cli):
    refusing.sandbox.control.add_fault("revoked")
    try:
        code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "1000")
    finally:
        refusing.sandbox.control.clear_faults()
    assert code == 1 and "deskbook:" in err
    assert refusing.audits() == [("order.refused", "venue_refused_access")]


def test_a_venue_that_cannot_be_reached(refusing, cli, monkeypatch):
    monkeypatch.setenv("DESKBOOK_SANDBOX_URL", f"http://{DEAD}")
    code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "1000")
    assert code == 1 and "add --key" in err
    assert refusing.audits() == [("order.refused", "venue_unreachable")]
    assert cli("orders", "list")[0] == 0, "looking needs no venue"


def test_a_database_that_is_down_at_the_start(refusing, cli, monkeypatch):
    monkeypatch.setenv("TIMESCALE_URL", f"postgresql://{DEAD}/deskbook")
    code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--key", "while-down")
    assert code == 1 and "ledger 'deskbook' at 127.0.0.1" in err
    note = json.loads((Path(refusing.env["DESKBOOK_HOME"]) / "notes.jsonl").read_text())
    assert (note["action"], note["metadata"]["reasons"], note["metadata"]["key"]) == ("order.refused", ["ledger_down"], "while-down")
    monkeypatch.setenv("TIMESCALE_URL", refusing.ledger)
    assert cli("orders", "list")[0] == 0
    assert refusing.audits() == [("order.refused", "ledger_down")], "the note was carried in"
    assert cli("orders", "list")[0] == 0 and refusing.audits() == []


def test_a_missing_usd_rate(refusing, cli):
    """Prices that stand still are no prices: without a fresh one there is no size in dollars, and nobody guesses it."""
    assert cli("risk", "set-policy", "mark_max_age_s=1")[0] == 0
    refusing.sandbox.control.market("freeze")
    try:
        time.sleep(1.5)
        code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "1000")
        assert code == 4 and "[no_usd_rate]" in err
        assert refusing.audits() == [("order.refused", "mark_stale", "no_usd_rate")]
        assert cli("orders", "submit", "EUR_USD", "--buy", "1000", "--dry", "--json")[1]["reasons"] == ["mark_stale", "no_usd_rate"]
    finally:
        refusing.sandbox.control.market("release")
        assert cli("risk", "set-policy", "mark_max_age_s=60")[0] == 0


def test_a_database_that_dies_while_an_order_is_on_its_way(sandbox, valkey_url, mortal_servers, tmp_path, here, cli):
    """The command fails, the order does not get lost: the same key finds it, and it is at the venue once."""
    mortal = mortal_servers.postgres
    made = here(world(sandbox, mortal.url, valkey_url, tmp_path / "home"))
    assert cli("kill-switch", "clear", "--why", "test")[0] == 0
    sandbox.control.add_fault("latency", route="orders.create", ms=1500)

    def kill_when_sent():
        end = time.monotonic() + 30
        while time.monotonic() < end and not made.rows("SELECT 1 AS x FROM orders WHERE sent_at IS NOT NULL"):
            time.sleep(0.02)
        os.kill(mortal.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_sent)
    killer.start()
    code, out, err = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--key", "survivor", "--wait-s", "1")
    killer.join()
    assert code == 1 and out == "" and "deskbook: ledger" in err
    assert not (tmp_path / "home" / "notes.jsonl").exists(), "it was not refused"
    sandbox.control.clear_faults()
    mortal.revive()
    code, order, _ = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--key", "survivor", "--wait-s", "60", "--json")
    assert (code, order["state"]) == (0, "filled")
    assert len(made.at_venue()) == 1
    assert cli("reconcile")[0] == 0


# --- real money -------------------------------------------------------------------------------------------------------------------

def test_a_live_account_asks_for_its_name_and_then_for_its_key(refusing, cli):
    words = ("orders", "submit", "EUR_USD", "--buy", "1000", "--account", "oanda-live")
    code, _, err = cli(*words)
    assert code == 4 and "buys 1000 EUR_USD for real money and was not confirmed" in err
    assert cli(*words, "--yes-account", "paper")[0] == 2
    code, _, err = cli(*words, "--yes-account", "oanda-live")
    assert code == 4 and "OANDA_API_KEY" in err
    assert refusing.rows("SELECT metadata->'reasons' AS r FROM ops_audit_events WHERE chain = 'oanda-live'") == [{"r": ["Refused"]}]
    assert cli("orders", "close", "EUR_USD", "--account", "oanda-live")[0] == 4
    assert cli("risk", "rearm", "--account", "oanda-live")[0] == 4
    assert cli("kill-switch", "arm", "--why", "x")[0] == 4


def test_arming_is_for_live_accounts_and_ends(refusing, cli):
    code, _, err = cli("kill-switch", "arm", "--account", "sandbox", "--why", "x", "--yes-account", "sandbox")
    assert code == 2 and "no live account" in err
    refusing.rows("INSERT INTO accounts (account, venue, environment, mode, currency) VALUES ('oanda-live', 'oanda', 'live', 'live', 'USD') ON CONFLICT DO NOTHING RETURNING 1")
    code, armed, _ = cli("kill-switch", "arm", "--minutes", "0.001", "--why", "x", "--yes-account", "oanda-live", "--json")
    assert code == 0 and armed["account"] == "oanda-live"
    time.sleep(0.1)
    code, state, _ = cli("kill-switch", "disarm", "--why", "x", "--json")
    assert (code, state["armed"], state["until_ms"]) == (0, False, None)
    assert cli("kill-switch", "arm", "--minutes", "721", "--why", "x", "--yes-account", "oanda-live")[0] == 2


def test_clearing_needs_the_key_of_whatever_could_be_traded(refusing, cli, monkeypatch):
    """Paper needs no key; but where a broker's account may be written to, nobody clears the switch for paper without all of its key."""
    def clear(*more):
        return cli("kill-switch", "clear", "--why", "test", *more)

    assert clear("--account", "oanda-practice")[0] == 4
    monkeypatch.setenv("OANDA_API_KEY", "not-a-real-key")
    assert clear()[0] == 0, "read-only: nothing can reach the broker"
    monkeypatch.setenv("READ_ONLY", "0")
    code, _, err = clear()
    assert code == 4 and "OANDA_ACCOUNT_ID not set" in err
    monkeypatch.setenv("OANDA_ACCOUNT_ID", "101-001-0000001-001")
    assert clear()[0] == 0
    assert clear("--account", "nobody")[0] == 2


def test_engaging_works_without_store_and_ledger_and_clearing_does_not(refusing, cli, monkeypatch, tmp_path):
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("VALKEY_URL", f"redis://{DEAD}/0")
    monkeypatch.setenv("TIMESCALE_URL", f"postgresql://{DEAD}/deskbook")
    code, out, err = cli("kill-switch", "engage", "--why", "everything is down")
    assert (code, out) == (0, "The kill switch is engaged.\n") and "no audit row" in err
    assert cli("kill-switch", "engage")[0] == 0, "whoever has no time for a reason stops the desk as well"
    code, _, err = cli("kill-switch", "clear", "--why", "hope")
    assert code == 4 and "cannot be read" in err
    assert json.loads((tmp_path / "elsewhere" / "kill_switch.json").read_text())["engaged"] is True


# --- risk -------------------------------------------------------------------------------------------------------------------------

def test_a_loss_trips_the_breaker_and_a_person_rearms_it(w, cli):
    assert cli("orders", "submit", "EUR_USD", "--buy", "8000")[0] == 0
    code, policy, _ = cli("risk", "set-policy", "max_daily_loss=0.1%", "cooldown_s=0", "--json")
    assert (code, policy["max_daily_loss_frac"], policy["max_drawdown_frac"], policy["account"]) == (0, "0.001", "0.05", "sandbox")
    average = float(cli("positions", "--json")[1][0]["average_price"])
    w.sandbox.control.market("price", "EUR_USD", bid=f"{average - 0.02:.5f}", ask=f"{average - 0.0199:.5f}")
    assert cli("reconcile")[0] == 0
    picture = cli("risk", "--json")[1]
    assert (picture["state"]["status"], picture["state"]["reason"]) == ("tripped", "max_daily_loss")
    before = w.rows("SELECT * FROM account_risk_state")
    assert "tripped" in cli("risk", "show")[1] and w.rows("SELECT * FROM account_risk_state") == before, "looking changes nothing"
    w.audits()
    code, _, err = cli("orders", "submit", "USD_JPY", "--buy", "100")
    assert code == 4 and "[circuit_breaker]" in err and ("order.refused", "max_daily_loss", "circuit_breaker") in w.audits()
    assert cli("orders", "close", "EUR_USD")[0] == 0, "the way out is open"
    assert cli("risk", "rearm")[0] == 0 and cli("reconcile")[0] == 0
    assert cli("risk", "--json")[1]["state"]["status"] == "tripped", "the loss is still there"
    code, state, _ = cli("risk", "rearm", "--accept-loss", "--json")
    assert (code, state["status"]) == (0, "ok")
    assert cli("orders", "submit", "USD_JPY", "--buy", "100")[0] == 0


def test_policies_from_the_command_line(refusing, cli):
    assert cli("risk", "set-policy", "max_leverage=2", "--account", "nobody", "--yes-account", "nobody")[0] == 1
    assert cli("risk", "set-policy", "max_leveridge=2")[0] == 2
    assert cli("risk", "set-policy", "max_leverage=-2")[0] == 2
    code, out, _ = cli("risk", "set-policy", "max_leverage=2.5", "--for-mode", "--name", "all paper")
    assert code == 0 and "max_leverage                   2.5" in out


def test_freezing_stops_entries_until_somebody_thaws(w, cli):
    assert cli("orders", "submit", "EUR_USD", "--buy", "1000")[0] == 0
    assert cli("risk", "freeze", "--why", "the feed looks wrong")[0] == 0
    code, _, err = cli("orders", "submit", "EUR_USD", "--buy", "1000")
    assert code == 4 and "[entries_frozen]" in err
    assert cli("orders", "close", "EUR_USD", "--units", "100")[0] == 0
    assert cli("risk", "unfreeze", "--why", "it was right")[0] == 0
    assert cli("orders", "submit", "EUR_USD", "--buy", "1000")[0] == 0
    assert cli("reconcile", "--unfreeze")[0] == 2 and cli("reconcile", "--accept")[0] == 2
    assert cli("risk", "unblock", "EUR_USD", "--why", "x") == (0, "sandbox: EUR_USD was not blocked\n", "")


def test_closing_under_the_kill_switch_needs_to_be_said(w, cli):
    assert cli("orders", "submit", "EUR_USD", "--buy", "1000")[0] == 0
    assert cli("kill-switch", "engage", "--why", "test")[0] == 0
    assert cli("orders", "close", "EUR_USD")[0] == 4
    assert cli("orders", "close", "EUR_USD", "--override-kill")[0] == 0
    assert cli("positions")[1] == "sandbox holds nothing\n"


# --- the daemon -------------------------------------------------------------------------------------------------------------------

def lines_until(process, state, timeout_s=40):
    """The daemon's lines up to one state."""
    got = []
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            got.append(json.loads(line))
            if got[-1]["state"] == state:
                return got
    finally:
        timer.cancel()
    pytest.fail(f"{got} and then nothing; {process.stderr.read() if process.stderr else ''}")


def test_the_daemon_sends_and_stops_cleanly(w, cli):
    program = f"import sys; from deskbook.trading import desk; desk.SANDBOX_ACCOUNT = {w.account!r}; from deskbook.app.cli import main; sys.exit(main())"
    env = {**os.environ, **w.env, "KILL_SWITCH_BOOT": "keep"}
    daemon = subprocess.Popen([sys.executable, "-c", program, "daemon", "sender", "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told = lines_until(daemon, "sending")
        assert [told[0]["state"], told[-1]["state"]] == ["waiting", "sending"]
        code, order, _ = cli("orders", "submit", "EUR_USD", "--buy", "1000", "--json")
        assert (code, order["state"]) == (0, "filled")
        assert w.rows("SELECT owner FROM leases WHERE name = 'sender:sandbox'") == [{"owner": told[-1]["owner"]}], "the daemon sent it"
        code, queued, _ = cli("orders", "submit", "EUR_USD", "--sell", "500", "--no-send", "--json")
        assert queued["state"] in ("created", "submitting", "filled")
        assert cli("orders", "submit", "EUR_USD", "--sell", "500", "--key", queued["idempotency_key"])[0] == 0
        daemon.send_signal(signal.SIGTERM)
        assert lines_until(daemon, "stopped") and daemon.wait(20) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
        daemon.communicate()
    assert w.rows("SELECT expires_at <= clock_timestamp() AS free FROM leases WHERE name = 'sender:sandbox'") == [{"free": True}]
    assert len(w.at_venue()) == 2


def test_a_daemon_starts_halted(w, cli):
    program = f"import sys; from deskbook.trading import desk; desk.SANDBOX_ACCOUNT = {w.account!r}; from deskbook.app.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", program, "daemon", "sender", "--json"], env={**os.environ, **w.env}, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            lines_until(daemon, "sending")
            assert cli("orders", "submit", "EUR_USD", "--buy", "1000")[0] == 4
        finally:
            daemon.terminate()
            daemon.communicate(timeout=30)
    assert w.at_venue() == []


# --- help -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [
    ("orders", "list"), ("orders", "show"), ("orders", "submit"), ("orders", "cancel"), ("orders", "close"), ("orders", "flatten"), ("positions",), ("reconcile",),
    ("risk", "show"), ("risk", "rearm"), ("risk", "set-policy"), ("risk", "freeze"), ("risk", "unfreeze"), ("risk", "unblock"),
    ("kill-switch", "status"), ("kill-switch", "engage"), ("kill-switch", "clear"), ("kill-switch", "arm"), ("kill-switch", "disarm"), ("daemon", "sender")])
def test_every_command_has_an_example_in_its_help(words, cli):
    code, out, _ = cli(*words, "--help")
    assert code == 0 and f"Example: deskbook {' '.join(words)}" in " ".join(out.split())
