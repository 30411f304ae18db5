"""People that are hard to reach: a webhook that answers a byte at a time or sends us elsewhere, a syslog that is gone, counts that are true."""
import socket
import threading
import time

from deskbook.core.settings import Settings
from deskbook.ops.notify import Alert, Notifier
from listeners import Syslog, Webhook


def test_a_webhook_that_answers_forever_is_left():
    """Each byte comes in time, and the answer never does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def drip():
            while True:
                try:
                    c, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=slowly, args=(c,), daemon=True).start()

        def slowly(c):
            try:
                c.recv(4096)
                for byte in b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1000:
                    c.send(bytes([byte]))
                    time.sleep(0.2)
            except OSError:
                pass

        threading.Thread(target=drip, daemon=True).start()
        notifier = Notifier(Settings(slack_webhook=f"http://127.0.0.1:{server.getsockname()[1]}/x"), pauses_s=())
        began = time.monotonic()
        notifier.send(Alert("a", "high", "one"))
        while not notifier.failed and time.monotonic() - began < 15:
            time.sleep(0.05)
        took = time.monotonic() - began
        assert notifier.failed == 1 and took < 8, took
        assert not notifier.close(1.0)


def test_a_redirect_is_not_followed_with_the_message():
    with Webhook() as other, Webhook(302) as hook:
        notifier = Notifier(Settings(slack_webhook=hook.url), pauses_s=())
        notifier.send(Alert("a", "high", "one"))
        assert not notifier.close() and notifier.failed == 1 and not other.bodies


def test_a_syslog_that_comes_back_hears_the_next_alert(tmp_path):
    path = str(tmp_path / "log")
    notifier = Notifier(Settings(syslog_address=path), pauses_s=())
    notifier.send(Alert("a", "high", "nobody listens"))
    while notifier.waiting:
        time.sleep(0.01)
    with Syslog(path) as log:
        assert notifier.send(Alert("a", "high", "somebody listens")), "nobody was told before"
        assert "somebody listens" in log.next()
    notifier.close()


def test_the_memory_may_be_read_while_alerts_fail():
    """The health worker looks through it while the places of delivery take out what nobody heard."""
    notifier, wrong, end = Notifier(Settings(syslog_address="/nowhere/log"), pauses_s=()), [], time.monotonic() + 1.5

    def look():
        while time.monotonic() < end:
            try:
                notifier.told()
            except Exception as e:
                wrong.append(e)

    reader = threading.Thread(target=look)
    reader.start()
    n = 0
    while time.monotonic() < end:
        notifier.send(Alert(f"a{n}", "high", "x"))
        n += 1
    reader.join()
    notifier.close(1.0)
    assert not wrong and n > 100
