"""`deskbook` with the clock of a sandbox venue: its minutes end when a test says so, on any day of the week. Everything else is as a person starts it.

    python desk_process.py CONTROL_URL up --json
"""
import functools
import os
import signal
import sys
import threading
import time

from deskbook.app import cli, up
from deskbook.core.clock import to_ms
from deskbook.trading import marks
from deskbook.venues.sandbox.client import SandboxControl


class FollowedClock:
    """The venue's time: it runs as the wall does, and jumps when the venue's was moved."""

    def __init__(self, url, every_s=0.05):
        self.control, self.every_s = SandboxControl(url), every_s
        self.read()
        threading.Thread(target=self.follow, daemon=True).start()

    def read(self):
        sent = time.monotonic()
        self.at = to_ms(self.control.health()["time"]), (sent + time.monotonic()) / 2

    def follow(self):
        while True:
            time.sleep(self.every_s)
            try:
                self.read()
            except Exception:  # the venue has ended, or is being moved
                time.sleep(0.2)

    def __call__(self):
        ms, read_s = self.at
        return ms + int((time.monotonic() - read_s) * 1000)


class NoWatch:
    """Stands in for the measured clock of a venue: that one expects no jumps."""

    offset = None

    def __init__(self, fetch, timing, **_):
        self.now_ms, self.status = timing.clock, "ok"

    async def measure(self):
        """Nothing to measure."""

    def check(self):
        """Never apart."""


def end_with_owner():
    """No desk outlives the test that started it, however that ended."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_owner, daemon=True).start()
    marks.ClockWatch = NoWatch
    up.desk_up = functools.partial(up.desk_up, clock=FollowedClock(sys.argv.pop(1)))
    sys.exit(cli.main())
