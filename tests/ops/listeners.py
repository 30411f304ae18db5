"""A webhook and a syslog on this machine that keep what they were told."""
import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Webhook:
    """`answers` are used up one by one, the last one stays; an answer is a status, or seconds to hang."""

    def __init__(self, *answers):
        self.answers, self.bodies = list(answers) or [200], []
        this = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = this.answers.pop(0) if len(this.answers) > 1 else this.answers[0]
                if isinstance(said, float):
                    time.sleep(said)
                    said = 200
                this.bodies.append((said, body))
                with contextlib.suppress(OSError):
                    self.send_response(said)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T000/B000/hook-secret-1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def texts(self):
        return [b["text"] for status, b in self.bodies if status == 200]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Syslog:
    """Over UDP, or at a path of this machine."""

    def __init__(self, path=""):
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(path or ("127.0.0.1", 0))
        self.socket.settimeout(5)
        self.address = path or f"127.0.0.1:{self.socket.getsockname()[1]}"

    def next(self):
        return self.socket.recv(4096).decode()

    def nothing(self):
        self.socket.settimeout(0.1)
        try:
            return not self.socket.recv(4096)
        except TimeoutError:
            return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
