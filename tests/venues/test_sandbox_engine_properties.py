"""Whatever is asked in whatever order: the account is the fold of its log, and the log adds up."""
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deskbook.core.clock import iso, to_ms
from deskbook.venues.sandbox.account import fold
from deskbook.venues.sandbox.clock import SandboxClock
from deskbook.venues.sandbox.engine import SandboxConfig, SandboxEngine
from deskbook.venues.sandbox.market import Market, SimulatedSource
from deskbook.venues.sandbox.wire import WireError
import itertools

ME, START, NAMES = "101-001-1000001-001", "2025-11-04T21:50:00Z", ("EUR_USD", "USD_JPY")
MARKET = Market(SimulatedSource(NAMES))

instrument, sizes, offsets = st.sampled_from(NAMES), st.sampled_from([-6000, -2600, -900, -1, 1, 400, 1000, 2600, 5000, 45_000]), st.integers(-40, 40)
extras = st.one_of(st.just({}), st.fixed_dictionaries({}, optional={"stop": st.integers(1, 60), "goal": st.integers(1, 60)}), st.fixed_dictionaries({}, optional={
    "client": st.integers(0, 5), "trade": st.integers(0, 3), "stop": st.integers(-2, 60), "fill": st.sampled_from(["DEFAULT", "OPEN_ONLY", "REDUCE_FIRST", "REDUCE_ONLY"])}))
markets = st.tuples(st.just("market"), instrument, sizes, st.sampled_from(["FOK", "IOC"]), extras)
resting = st.tuples(st.just("rest"), instrument, sizes, st.sampled_from(["LIMIT", "STOP"]), offsets, st.sampled_from(["GTC", "GFD"]), extras)
wait = st.tuples(st.just("wait"), st.sampled_from([1, 250, 1300, 20_000, 600_000, 7_200_000]))
others = st.one_of(
    st.tuples(st.just("cancel"), st.integers(4, 40)), st.tuples(st.just("close"), instrument, st.sampled_from(["ALL", "700"])),
    st.tuples(st.just("close trade"), st.integers(0, 10), st.sampled_from(["ALL", "100"])), st.tuples(st.just("price"), instrument, st.integers(-300, 300)),
    st.tuples(st.just("release"), instrument), st.tuples(st.just("halt"), instrument), st.tuples(st.just("transfer"), st.integers(-500, 500)),
    st.tuples(st.just("script"), st.sampled_from(["INSUFFICIENT_MARGIN", "UNITS_LIMIT_EXCEEDED"])), st.tuples(st.just("market"), instrument, st.just(0), st.just("FOK"), st.just({})))
operations = st.integers(10, 40).flatmap(lambda n: st.lists(st.one_of(markets, resting, markets, resting, wait, others), min_size=n, max_size=n))
configs = st.builds(SandboxConfig, commission_per_million=st.sampled_from([Decimal(0), Decimal(35)]), slippage_ticks=st.integers(0, 2),
    slices=st.sampled_from([(), ((0, Decimal("0.4")), (900, Decimal("0.6")))]), levels=st.sampled_from([SandboxConfig().levels, ((Decimal(2500), Decimal(0)), (Decimal(2500), Decimal("0.5")))]),
    conversion_fee_frac=st.sampled_from([Decimal(0), Decimal("0.005")]))


def tick(name): return Decimal(1).scaleb(-MARKET.universe[name].display_precision)


def request(engine, name, units, extra, **more):
    quote = engine.price(name)
    here = Decimal((quote["asks"] if units > 0 else quote["bids"])[0]["price"])
    sign, pip = (1 if units > 0 else -1), 10 * tick(name)
    out = {"instrument": name, "units": str(units), "positionFill": extra.get("fill", "DEFAULT"), **more}
    if "stop" in extra: out["stopLossOnFill"] = {"price": str(here - sign * extra["stop"] * pip)}
    if "goal" in extra: out["takeProfitOnFill"] = {"price": str(here + sign * extra["goal"] * pip)}
    if "client" in extra: out["clientExtensions"] = {"id": f"db-{extra['client']}"}
    if "trade" in extra: out["tradeClientExtensions"] = {"id": f"db-{extra['trade']}"}
    return here, out


def do(engine, op):
    match op:
        case ("market", name, units, tif, extra): engine.submit_order(ME, {**request(engine, name, units, extra)[1], "type": "MARKET", "timeInForce": tif})
        case ("rest", name, units, kind, off, tif, extra):
            here, out = request(engine, name, units, extra)
            engine.submit_order(ME, {**out, "type": kind, "price": str(here + off * 5 * tick(name)), "timeInForce": tif})
        case ("cancel", n): engine.cancel_order(ME, str(n))
        case ("close", name, units): engine.close_position(ME, name, {("longUnits" if net(engine, name) >= 0 else "shortUnits"): units})
        case ("close trade", n, units):
            trades = engine.trades(ME, True)["trades"]
            engine.close_trade(ME, trades[n % len(trades)]["id"] if trades else "1", {"units": units})
        case ("wait", ms): engine.clock.advance(ms)
        case ("price", name, off):
            bid = Decimal(engine.price(name)["bids"][0]["price"]) + off * tick(name)
            engine.set_price(name, bid, bid + 12 * tick(name))
        case ("release", name): engine.release(name)
        case ("halt", name): engine.halt(name)
        case ("script", reason): engine.script(reason)
        case ("transfer", amount): engine.transfer(ME, str(amount))


def net(engine, name):
    p = engine.account_state(ME).positions.get(name)
    return p.units if p else Decimal(0)


def run(ops, config, balance):
    MARKET.overrides.clear()
    engine = SandboxEngine(MARKET, SandboxClock(START), config)
    engine.create_account(ME, str(balance))
    for op in ops:
        try: do(engine, op)
        except WireError as e: assert e.status in (400, 404)
    engine.advance()
    return engine


def fills(log): return [t for t in log if t["type"] == "ORDER_FILL"]


def check_ids(log):
    assert [int(t["id"]) for t in log] == list(range(1, len(log) + 1))
    assert all(a["time"] <= b["time"] and int(a["batchID"]) <= int(b["batchID"]) <= int(b["id"]) for a, b in itertools.pairwise(log))
    assert all(t["requestID"] == log[int(t["batchID"]) - 1]["requestID"] for t in log)


def check_money(log, account):
    balance = Decimal(0)
    for t in log:
        if t["type"] == "TRANSFER_FUNDS": balance += Decimal(t["amount"])
        if t["type"] == "DAILY_FINANCING": balance += Decimal(t["financing"])
        if t["type"] == "ORDER_FILL":
            balance += Decimal(t["pl"]) - Decimal(t["commission"])
            parts = [*t.get("tradesClosed", []), *([t["tradeReduced"]] if "tradeReduced" in t else [])]
            assert Decimal(t["pl"]) == sum(Decimal(p["realizedPL"]) for p in parts)
        if "accountBalance" in t: assert Decimal(t["accountBalance"]) == balance
    assert account.balance == balance


def oracle(log):
    """Positions and profit in quote currency from the fills alone: queues of lots, exact fractions, first in first out unless a fill names its trade."""
    lots, profits = defaultdict(list), {}
    for t in fills(log):
        units, price, earned, queue = Fraction(t["units"]), Fraction(t["price"]), Fraction(0), lots[t["instrument"]]
        named = {p["tradeID"] for p in [*t.get("tradesClosed", []), *([t["tradeReduced"]] if "tradeReduced" in t else [])]}
        tied = t["reason"] in ("STOP_LOSS_ORDER", "TAKE_PROFIT_ORDER", "MARKET_ORDER_TRADE_CLOSE")
        for lot in list(queue):
            if units * lot[1] >= 0 or (tied and lot[0] not in named): continue
            part = min(abs(units), abs(lot[1])) * (1 if units > 0 else -1)
            assert lot[0] in named
            earned -= part * (price - lot[2])
            lot[1], units = lot[1] + part, units - part
            if not lot[1]: queue.remove(lot)
        if units: queue.append([t["id"], units, price])
        assert ("tradeOpened" in t) == bool(units) and not (units and tied)
        profits[t["id"]] = earned
    return lots, profits


def check_positions(log, account):
    lots, profits = oracle(log)
    for t in fills(log): assert Fraction(t["quotePL"]) == profits[t["id"]]
    for name in NAMES:
        p = account.positions.get(name)
        held, summed = (p.units if p else Decimal(0)), sum((Decimal(t["units"]) for t in fills(log) if t["instrument"] == name), Decimal(0))
        assert held == summed == sum(lot[1] for lot in lots[name])
        if p:
            assert [(t.id, t.units, t.price) for t in p.trades.values()] == [tuple(lot) for lot in lots[name]]
            assert p.cost == sum(t.units * t.price for t in p.trades.values()) and all(t.units * held > 0 for t in p.trades.values())
    assert {t.id for t in account.open_trades.values()} == {lot[0] for queue in lots.values() for lot in queue}


def check_orders(log, account):
    for o in account.orders.values():
        got = sum((Decimal(t["units"]) for t in fills(log) if t["orderID"] == o.id), Decimal(0))
        ends = [t for t in log if t["type"] == "ORDER_CANCEL" and t["orderID"] == o.id]
        assert got == o.filled and len(ends) == (o.state == "CANCELLED") and (o.id in account.pending) == (o.state == "PENDING")
        if o.units: assert abs(got) <= abs(o.units) and got * o.units >= 0 and (o.state != "FILLED" or got == o.units)
        if o.type == "MARKET": assert o.state != "PENDING"
        if o.trade_id and o.state == "PENDING": assert account.trades[o.trade_id].units != 0
        if o.type == "LIMIT":
            for t in fills(log):
                if t["orderID"] == o.id: assert (Decimal(t["price"]) - o.price) * o.units <= 0
    clients = [o.client_id for o in account.pending.values() if o.client_id]
    assert len(clients) == len(set(clients)) and account.pending_client == {o.client_id: o.id for o in account.pending.values() if o.client_id}
    opened_by = {t["id"]: t["orderID"] for t in fills(log)}  # a trade has the id of the fill that opened it
    named = defaultdict(set)
    for t in account.open_trades.values():
        if t.extensions: named[t.extensions["id"]].add(opened_by[t.id])
    assert all(len(orders) == 1 for orders in named.values())  # an order filled in slices opens several trades of its name


def check_reduce_only(log):
    held = defaultdict(Decimal)
    asked = {t["id"]: t for t in log if t["type"].endswith("_ORDER")}
    for t in fills(log):
        before, after = held[t["instrument"]], held[t["instrument"]] + Decimal(t["units"])
        held[t["instrument"]] = after
        if asked[t["orderID"]].get("positionFill") == "REDUCE_ONLY": assert before * after >= 0 and abs(after) < abs(before)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations, configs, st.sampled_from([100_000, 5000, 1200]))
def test_the_log_adds_up_and_is_the_account(ops, config, balance):
    engine = run(ops, config, balance)
    log, account = engine.log(ME), engine.account_state(ME)
    check_ids(log), check_money(log, account), check_positions(log, account), check_orders(log, account), check_reduce_only(log)
    assert fold(ME, log) == account
    a = engine.summary(ME)["account"]
    assert Decimal(a["NAV"]) == account.balance + Decimal(a["unrealizedPL"])
    assert Decimal(a["marginAvailable"]) == max(Decimal(a["NAV"]) - Decimal(a["marginUsed"]), 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations, configs, st.integers(0, 30))
def test_a_restart_at_any_point_changes_nothing(ops, config, at):
    """One venue runs through, the other is restored from its log in the middle; both must write the same from there on."""
    ops = [op for op in ops if op[0] != "script"]  # what was scripted is not part of an account
    MARKET.overrides.clear()
    one = run(ops[:at], config, 2000)
    two = SandboxEngine.restore({ME: one.log(ME)}, MARKET, SandboxClock(iso(one.clock())), config)
    assert two.account_state(ME) == one.account_state(ME)
    held, answers = dict(MARKET.overrides), []
    for engine in (one, two):
        MARKET.overrides.clear()
        MARKET.overrides.update(held)
        for op in [*ops[at:], ("wait", 7_200_000)]:
            try: do(engine, op)
            except WireError: pass
        engine.advance()
        answers.append((engine.log(ME), engine.account_state(ME), engine.orders(ME, "ALL"), engine.positions(ME), engine.trades(ME, state="ALL")))
    assert answers[0] == answers[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5_000_000), min_size=1, max_size=12))
def test_time_in_steps_is_time_in_one_leap(steps):
    """However often somebody asks in between, the same things happen at the same times."""
    MARKET.overrides.clear()
    config, logs = SandboxConfig(slices=((0, Decimal("0.5")), (1500, Decimal("0.5")))), []
    for parts in (steps, [sum(steps)]):
        engine = SandboxEngine(MARKET, SandboxClock(START), config)
        engine.create_account(ME, "2000")
        for name in NAMES:
            do(engine, ("market", name, 20_000, "FOK", {"stop": 9, "goal": 9}))
            for off in (-6, -3, 3, 6):
                for kind in ("LIMIT", "STOP"): do(engine, ("rest", name, 1000 if off % 2 else -1000, kind, off, "GFD", {}))
        for ms in parts: engine.advance(engine.clock() + ms)
        logs.append(engine.log(ME))
    assert logs[0] == logs[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7 * 86_400_000), st.sampled_from(NAMES))
def test_the_price_is_inside_its_candle(offset, name):
    market, at = MARKET, to_ms("2025-11-03") + offset
    market.overrides.clear()
    q, fresh = market.quote(name, at), Market(SimulatedSource(NAMES)) if offset % 20 == 0 else market
    assert q == fresh.quote(name, at) and q.bid < q.ask and q.time_ms <= at
    day = market.day(name, q.time_ms // 86_400_000)
    row = day.times.index(q.time_ms // 60_000 * 60_000)
    assert day.bid[row, 2] <= q.bid <= day.bid[row, 1] and day.ask[row, 2] <= q.ask <= day.ask[row, 1]
