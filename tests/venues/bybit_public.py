"""A real loopback HTTP server that speaks the public part of Bybit v5, with faults that can be scheduled per kline call."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

MINUTE = 60_000
T0 = 1_762_128_000_000  # 2025-11-03T00:00:00Z


def bar(k, close=None):
    o, c = 107_000 + k % 50, 107_000 + (k + 1) % 50 if close is None else close
    return [str(T0 + k * MINUTE), str(o), str(max(o, c) + 3), str(min(o, c) - 3), str(c), "12.5", "1337500"]


def instrument(category, coin="BTC"):
    base = {"symbol": f"{coin}USDT", "baseCoin": coin, "quoteCoin": "USDT", "status": "Trading", "priceFilter": {"tickSize": "0.10", "minPrice": "0.10", "maxPrice": "1999999.80"}}
    if category == "spot":
        return base | {"innovation": "0", "marginTrading": "both", "lotSizeFilter": {"basePrecision": "0.000001", "quotePrecision": "0.0000001", "minOrderQty": "0.000048",
            "maxOrderQty": "71.7", "minOrderAmt": "1", "maxOrderAmt": "4000000"}}
    return base | {"contractType": "LinearPerpetual", "settleCoin": "USDT", "launchTime": "1584230400000", "deliveryTime": "0", "deliveryFeeRate": "", "priceScale": "2",
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"}, "unifiedMarginTrade": True, "fundingInterval": 480, "copyTrading": "both",
        "lotSizeFilter": {"maxOrderQty": "1190.000", "minOrderQty": "0.001", "qtyStep": "0.001", "postOnlyMaxOrderQty": "1190", "maxMktOrderQty": "500", "minNotionalValue": "5"}}


class BybitPublic:
    """`faults[n]` is what happens to the n-th kline call (0-based): drop, half, html, limit, limit_body, geo, empty, again, gone."""

    def __init__(self, bars=2500, faults=None, coins=("BTC",)):
        self.coins = coins
        self.bars, self.faults, self.calls, self.lock, self.previous = [bar(k) for k in range(bars)], dict(faults or {}), [], threading.Lock(), []
        self.now = T0 + (bars - 1) * MINUTE + 30_000  # the last bar is still forming
        world = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                world.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def send(self, h, body, status=200, headers=None, cut=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        h.send_response(status)
        for k, v in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            h.send_header(k, v)
        h.end_headers()
        h.wfile.write(data[:cut])
        if cut is not None:
            h.close_connection = True

    def result(self, h, result):
        self.send(h, {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": self.now})

    def answer(self, h):
        path, q = urlsplit(h.path).path, dict(parse_qsl(urlsplit(h.path).query))
        if path == "/v5/market/time":
            return self.result(h, {"timeSecond": str(self.now // 1000), "timeNano": str(self.now * 1_000_000)})
        if path == "/v5/market/instruments-info":
            return self.result(h, {"category": q["category"], "list": [instrument(q["category"], c) for c in self.coins], "nextPageCursor": ""})
        if path != "/v5/market/kline":
            return self.send(h, {"retCode": 10001, "retMsg": f"no such path {path}", "result": {}})
        with self.lock:
            n = len(self.calls)
            self.calls.append(q)
        fault = self.faults.get(n)
        lo, limit = int(q.get("start", 0)), min(int(q.get("limit", 200)), 1000)
        rows = [b for b in self.bars if int(b[0]) >= lo and int(b[0]) <= int(q.get("end", 2**62))][:limit][::-1]
        if fault == "again":
            rows = self.previous
        self.previous = rows
        good = {"category": q["category"], "symbol": q["symbol"], "list": [] if fault == "empty" else rows}
        if fault == "drop":
            h.close_connection = True
            return h.connection.close()
        if fault == "half":
            return self.send(h, {"retCode": 0, "retMsg": "OK", "result": good}, cut=200)
        if fault == "html":
            return self.send(h, b"<html>502 Bad Gateway</html>", 502, {"Content-Type": "text/html"})
        if fault == "limit":
            return self.send(h, b"{}", 429, {"Retry-After": "2"})
        if fault == "limit_body":
            return self.send(h, {"retCode": 10006, "retMsg": "Too many visits!", "result": {}, "time": self.now})
        if fault == "geo":
            return self.send(h, b"The Amazon CloudFront distribution is configured to block access from your country.", 403, {"Content-Type": "text/html"})
        if fault == "gone":
            threading.Thread(target=self.close, daemon=True).start()
            h.close_connection = True
            return h.connection.close()
        return self.result(h, good)
