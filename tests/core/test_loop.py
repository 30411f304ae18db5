"""run_sync: one loop, errors as they are, nothing left running."""
import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from deskbook.core.errors import BadInput
from deskbook.core.loop import background_loop, run_sync


async def loop_and_thread():
    return asyncio.get_running_loop(), threading.current_thread()


def test_every_call_runs_on_the_same_loop_in_another_thread():
    first, second = run_sync(loop_and_thread()), run_sync(loop_and_thread())
    assert first == second and first[0] is background_loop() and first[1] is not threading.current_thread() and first[1].daemon


def test_it_works_where_a_loop_already_runs():
    async def outer():
        return run_sync(loop_and_thread())
    assert asyncio.run(outer())[0] is background_loop()


def test_many_threads_share_it():
    got = []
    threads = [threading.Thread(target=lambda: got.append(run_sync(loop_and_thread())[0])) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert set(got) == {background_loop()} and len(got) == 16


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("k"), TimeoutError("own"), BadInput("y")])
def test_errors_come_through(error):
    async def bad():
        raise error
    with pytest.raises(type(error)) as raised:
        run_sync(bad())
    assert raised.value.args == error.args


def test_a_timeout_cancels_and_waits_for_the_clean_up():
    seen = []

    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            seen.append("clean")
    with pytest.raises(TimeoutError):
        run_sync(slow(), timeout_s=0.02)
    assert seen == ["clean"]


def test_inside_its_own_loop_it_is_refused():
    async def inside():
        run_sync(loop_and_thread())
    with pytest.raises(BadInput, match="await"):
        run_sync(inside())


def run_script(text, **kw):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def test_ctrl_c_cancels_what_runs():
    p = run_script("""
        import asyncio
        from deskbook.core.loop import run_sync
        async def slow():
            print("started", flush=True)
            try: await asyncio.sleep(60)
            finally: print("cleaned", flush=True)
        try: run_sync(slow())
        except KeyboardInterrupt: print("interrupted", flush=True)
        """)
    assert p.stdout.readline() == "started\n"
    os.kill(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=20)
    assert out.splitlines() == ["cleaned", "interrupted"] and p.returncode == 0, err


def test_a_forked_child_gets_a_loop_of_its_own():
    p = run_script("""
        import os, sys, warnings
        from deskbook.core.loop import run_sync
        warnings.simplefilter("ignore")
        async def pid(): return os.getpid()
        assert run_sync(pid()) == os.getpid()
        child = os.fork()
        if child == 0: os._exit(0 if run_sync(pid(), timeout_s=10) == os.getpid() else 1)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """)
    _, err = p.communicate(timeout=30)
    assert p.returncode == 0, err


def test_the_process_ends_while_something_still_runs():
    p = run_script("""
        import asyncio
        from deskbook.core.loop import background_loop
        asyncio.run_coroutine_threadsafe(asyncio.sleep(60), background_loop())
        """)
    p.communicate(timeout=20)
    assert p.returncode == 0
