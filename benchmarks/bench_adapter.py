"""What one order costs in the OANDA adapter, in CPU time of this process, beside a bare httpx client that posts the same bytes.

    python benchmarks/bench_adapter.py            # 4,000 orders
    python benchmarks/bench_adapter.py --quick    # 800 orders

The venue is a process of its own that answers every order with the same 1.3 kB of OANDA JSON and thinks about nothing. The adapter checks the request,
asks guard, breaker and limiter, sends, reads the answer strictly and makes an acknowledgement with a fill; httpx sends and parses the JSON.
"""
import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from decimal import Decimal

TARGET_US = 1500
INSTRUMENT = {"name": "EUR_USD", "type": "CURRENCY", "displayPrecision": 5, "pipLocation": -4, "tradeUnitsPrecision": 0, "minimumTradeSize": "1",
              "maximumOrderUnits": "100000000", "marginRate": "0.0333"}
SUMMARY = {"account": {"currency": "USD", "balance": "1", "NAV": "1", "unrealizedPL": "0", "marginUsed": "0", "marginAvailable": "1"}, "lastTransactionID": "1"}
COMMON = {"accountID": "1", "userID": 1, "batchID": "7", "requestID": "42", "time": "2025-11-04T10:00:00.264025555Z", "instrument": "EUR_USD", "units": "1000"}
CREATED = {**COMMON, "id": "7", "type": "MARKET_ORDER", "timeInForce": "FOK", "positionFill": "DEFAULT", "reason": "CLIENT_ORDER"}
FILL = {**COMMON, "id": "8", "type": "ORDER_FILL", "orderID": "7", "price": "1.12876", "fullVWAP": "1.12876", "pl": "0.0000", "financing": "0.0000", "commission": "0.0000",
        "guaranteedExecutionFee": "0.0000", "halfSpreadCost": "0.0700", "gainQuoteHomeConversionFactor": "1", "lossQuoteHomeConversionFactor": "1",
        "accountBalance": "100000.0000", "reason": "MARKET_ORDER", "tradeOpened": {"tradeID": "8", "units": "1000", "price": "1.12876", "initialMarginRequired": "22.5752"},
        "fullPrice": {"bids": [{"price": "1.12862", "liquidity": "1000000"}], "asks": [{"price": "1.12876", "liquidity": "1000000"}]}}
ANSWER = {"orderCreateTransaction": CREATED, "orderFillTransaction": FILL, "lastTransactionID": "8", "relatedTransactionIDs": ["7", "8"]}


async def venue():
    """Speaks just enough HTTP; prints its port."""
    def whole(status, body):
        data = json.dumps(body).encode()
        return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nRequestID: 42\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data
    answers = {b"POST": whole(201, ANSWER), b"instruments": whole(200, {"instruments": [INSTRUMENT]}), b"summary": whole(200, SUMMARY)}

    async def client(r, w):
        try:
            while True:
                head = await r.readuntil(b"\r\n\r\n")
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        await r.readexactly(int(line[15:]))
                w.write(next(v for k, v in answers.items() if k in head.split(b"\r\n")[0]))
        except (asyncio.IncompleteReadError, ConnectionError):
            w.close()
    server = await asyncio.start_server(client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def timed(one, n, workers):
    """CPU and wall microseconds per call, the median of five parts."""
    cpu, wall = [], []
    for _ in range(5):
        c, w = time.process_time(), time.perf_counter()

        async def worker():
            for _ in range(n // 5 // workers):
                await one()
        await asyncio.gather(*(worker() for _ in range(workers)))
        done = n // 5 // workers * workers
        cpu.append((time.process_time() - c) / done * 1e6)
        wall.append((time.perf_counter() - w) / done * 1e6)
    return {"cpu_us": round(statistics.median(cpu)), "wall_us": round(statistics.median(wall))}


async def measure(port, n):
    import httpx
    from deskbook.venues.model import OrderRequest
    from deskbook.venues.oanda import Oanda

    async def allow(write):
        pass
    oanda, order = Oanda("1", "token", f"http://127.0.0.1:{port}", guard=allow), OrderRequest("db-7f3a", "EUR_USD", Decimal(1000))
    from deskbook.venues.oanda_wire import order_body, read_instrument
    body = order_body(order, read_instrument(INSTRUMENT))
    limits, out = httpx.Limits(max_connections=8, max_keepalive_connections=8), {}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, limits=limits) as bare:
        async def post():
            (await bare.post("/v3/accounts/1/orders", json=body, headers={"Authorization": "Bearer token"})).json()

        async def create():
            await oanda.create_order(order)
        for workers in (1, 8, 32):
            for one in (create, post):
                await one()
            out[str(workers)] = {"adapter": await timed(create, n, workers), "httpx": await timed(post, n, workers)}
    await oanda.aclose()
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="800 orders instead of 4,000")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    p.add_argument("--venue", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.venue:
        return asyncio.run(venue())
    server = subprocess.Popen([sys.executable, __file__, "--venue"], stdout=subprocess.PIPE, text=True)
    try:
        found = asyncio.run(measure(int(server.stdout.readline()), 800 if a.quick else 4000))
    finally:
        server.kill()
        server.wait()
    for side in found.values():
        side["ratio_cpu"] = round(side["adapter"]["cpu_us"] / side["httpx"]["cpu_us"], 2)
    result = {"at_once": found, "targets_met": bool(a.quick or max(s["adapter"]["cpu_us"] for s in found.values()) <= TARGET_US)}
    if a.json:
        print(json.dumps(result))
    else:
        print("orders at once   adapter CPU us   bare httpx CPU us   ratio   adapter wall us")
        for n, s in found.items():
            print(f"{n:>14}   {s['adapter']['cpu_us']:>14}   {s['httpx']['cpu_us']:>17}   {s['ratio_cpu']:>5}   {s['adapter']['wall_us']:>15}")
    return 0 if result["targets_met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
