"""A server that does to its clients, byte by byte, what real networks do."""
import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A whole answer; `body` is bytes, text, or anything JSON."""
    status: int = 200
    body: object = b"{}"
    headers: tuple = ()

    def data(self):
        b = self.body
        return b if isinstance(b, bytes) else b.encode() if isinstance(b, str) else json.dumps(b).encode()

    def wire(self, length=None):
        data = self.data()
        head = [f"HTTP/1.1 {self.status} X", "Content-Type: application/json", "RequestID: 4211", f"Content-Length: {len(data) if length is None else length}"]
        return "\r\n".join(head + [f"{k}: {v}" for k, v in self.headers] + ["", ""]).encode() + data


@dataclass
class Request:
    method: str
    path: str
    headers: dict
    body: bytes


# What can be done instead of an answer. Each gets (writer, reply): the reply that was due.

def reset(writer):
    """Close with an RST, as a crashed machine or a firewall does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def reset_now(w, reply):
    reset(w)


async def close_now(w, reply):
    w.close()


async def half_head(w, reply):
    w.write(b"HTTP/1.1 201 Cre")
    await w.drain()
    w.close()


async def half_body(w, reply):
    wire = reply.wire()
    w.write(wire[:-len(reply.data())//2 or None])
    await w.drain()
    w.close()


async def half_body_reset(w, reply):
    w.write(reply.wire()[:-5])
    await w.drain()
    await asyncio.sleep(0.05)
    reset(w)


async def hang(w, reply):
    await asyncio.sleep(60)


async def hang_in_body(w, reply):
    w.write(reply.wire()[:-5])
    await w.drain()
    await asyncio.sleep(60)


async def drip(w, reply):
    """A byte now and then: no single read is late, and it never ends."""
    for b in reply.wire(length=10**6) + b" "*10**6:
        w.write(bytes([b]))
        await w.drain()
        await asyncio.sleep(0.02)


async def not_http(w, reply):
    w.write(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")
    await w.drain()
    w.close()


async def bad_chunks(w, reply):
    w.write(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")
    await w.drain()
    w.close()


async def bad_gzip(w, reply):
    w.write(b"HTTP/1.1 201 Created\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!")
    await w.drain()


async def huge(w, reply):
    """More bytes than any answer has."""
    w.write(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    part = b"%x\r\n" % 2**20 + b" "*2**20 + b"\r\n"
    with contextlib.suppress(ConnectionError):
        for _ in range(64):
            w.write(part)
            await w.drain()


class RawServer:
    """Answers from `plan`: a list that is used up, then `default`. An item is a Reply, one of the functions above, or a function Request -> item."""
    def __init__(self, default=None, plan=(), before_body=False):
        self.default, self.plan, self.before_body = default or Reply(), list(plan), before_body
        self.requests, self.connections, self._tasks = [], 0, set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=2**22)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for t in list(self._tasks):
            t.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, r, w):
        self.connections += 1
        self._tasks.add(task := asyncio.current_task())
        try:
            while True:
                await self._serve(r, w)
                if w.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            w.close()

    async def _serve(self, r, w):
        head = (await r.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}
        method, path, _ = first.split(" ")
        if self.before_body and method == "POST":
            self.requests.append(Request(method, path, headers, b""))
            reset(w)
            return
        body = await r.readexactly(int(headers.get("content-length", 0)))
        request = Request(method, path, headers, body)
        self.requests.append(request)
        item = self.plan.pop(0) if self.plan else self.default
        if not isinstance(item, Reply) and not asyncio.iscoroutinefunction(item):
            item = item(request)
        if isinstance(item, Reply):
            w.write(item.wire())
            await w.drain()
        else:
            await item(w, self.default if isinstance(self.default, Reply) else Reply(201, b'{"orderCreateTransaction": {}}'))


def unused_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
