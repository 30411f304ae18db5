"""A process that has everything imported and nothing opened, and forks one child per job.

A job names an async function as "module:function" and gives it one JSON object; the child runs it with `asyncio.run` and writes what
it returns. Starting one costs a fork, not an import: a hundred restarts take seconds. Servers live in processes of their own.

    {"id": 1, "job": "scenarios:submit", "case": {...}, "kill": {point}, "hold_s": 0.01}      runs and dies there
    {"id": 2, "job": "scenarios:submit", "case": {...}, "record": 3}                          runs and returns its points
"""
import asyncio
import contextlib
import importlib
import json
import os
import selectors
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent


# ---- inside the zygote and its children


def _child(job: dict, out: str, watched: list[str]) -> None:
    import points

    code = 1
    try:
        os.environ.update(job.get("env", {}))
        module, name = job["job"].split(":")
        run = getattr(importlib.import_module(module), name)
        result: dict = {}
        seen: list = []
        watch: contextlib.AbstractContextManager = contextlib.nullcontext()
        if job.get("record"):
            watch = points.Watch(watched, points.recorder(seen, job["record"]), lines=job.get("lines", False))
        elif job.get("kill"):
            target = points.Point(**job["kill"])
            watch = points.Watch(watched, points.killer(target, job.get("hold_s", 0.0), job.get("with", signal.SIGKILL)), lines=target.kind == "line")
        try:
            with watch:
                result["value"] = asyncio.run(run(job["case"]))
            code = 0
        except BaseException as e:
            result |= {"error": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()}
        result["points"] = [p.to_json() for p in seen]
        if job.get("modules"):
            result["modules"] = sorted(sys.modules)
        Path(out).write_text(json.dumps(result, default=str))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(watched: list[str], modules: list[str]) -> None:
    """The zygote's loop: one JSON line in per job, one JSON line out when its process has ended."""
    for m in modules:
        importlib.import_module(m)
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a job prints must not be taken for an answer
    selector, children = selectors.DefaultSelector(), {}
    selector.register(0, selectors.EVENT_READ)
    buffer = b""
    print(json.dumps({"ready": os.getpid()}), file=answer)
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                got = os.read(0, 65536)
                if not got:
                    for pid, _, _ in children.values():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    return
                *lines, buffer = (buffer + got).split(b"\n")
                for line in lines:
                    job = json.loads(line)
                    if "import" in job:
                        for name in job["import"]:
                            with contextlib.suppress(Exception):
                                importlib.import_module(name)
                        continue
                    if "signal" in job:
                        for pid, other, _ in list(children.values()):
                            if other["id"] == job["id"]:
                                os.kill(pid, job["signal"])
                        continue
                    handle, out = tempfile.mkstemp(suffix=".json")
                    os.close(handle)
                    pid = os.fork()
                    if pid == 0:
                        selector.close()
                        answer.close()
                        with contextlib.suppress(OSError):
                            os.close(0)
                        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                        os.dup2(log, 1)
                        os.dup2(log, 2)
                        _child(job, out, watched)
                    print(json.dumps({"id": job["id"], "pid": pid}), file=answer)
                    fd = os.pidfd_open(pid)
                    children[fd] = (pid, job, out)
                    selector.register(fd, selectors.EVENT_READ)
            else:
                pid, job, out = children.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status, used = os.wait4(pid, 0)
                text = Path(out).read_text()
                os.unlink(out)
                print(json.dumps({"id": job["id"], "status": os.waitstatus_to_exitcode(status), "cpu_s": used.ru_utime + used.ru_stime,
                                  "result": json.loads(text) if text else {}}), file=answer)


# ---- in the test


@dataclass
class Ended:
    """How a job ended."""
    status: int  # 0, 1 when it raised, -9 when it was killed
    result: dict
    log: str = ""
    cpu_s: float = 0.0

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def value(self):
        if self.status != 0:
            raise AssertionError(f"the job ended with {self.status}\n{self.result.get('traceback', '')}\n{self.log[-4000:]}")
        return self.result["value"]


@dataclass
class Zygote:
    """`async with Zygote(...) as z: ended = await z.run("scenarios:submit", case)`."""
    modules: list[str]  # imported before the first fork
    watched: list[str]  # whose points count
    folders: list[str] = field(default_factory=list)  # added to sys.path
    env: dict = field(default_factory=dict)

    async def __aenter__(self):
        self._jobs, self._pids, self._next, self._folder = {}, {}, 0, tempfile.TemporaryDirectory(prefix="zygote")
        self._errors = open(Path(self._folder.name) / "zygote.log", "w+")
        words = {"modules": self.modules, "watched": self.watched, "folders": [str(HERE), *self.folders]}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "zygote.py"), json.dumps(words), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=self._errors, env={**os.environ, **self.env}, limit=1 << 26)
        ready = await asyncio.wait_for(self.process.stdout.readline(), 60)
        if not ready:
            raise AssertionError("the zygote did not start\n" + Path(self._errors.name).read_text())
        self._reader = asyncio.create_task(self._read())
        return self

    async def _read(self):
        while line := await self.process.stdout.readline():
            said = json.loads(line)
            if "pid" in said:
                self._pids[said["id"]] = said["pid"]
                continue
            future = self._jobs.pop(said["id"])
            if not future.done():
                future.set_result(said)
        for future in self._jobs.values():
            if not future.done():
                future.set_exception(AssertionError("the zygote died\n" + Path(self._errors.name).read_text()))

    def _tell(self, **job):
        self.process.stdin.write(json.dumps(job, default=str).encode() + b"\n")

    def start(self, job: str, case: dict, **options) -> tuple[int, asyncio.Future]:
        """Start a job; its number (for `send_signal`) and a future of `Ended`."""
        self._next += 1
        number, future = self._next, asyncio.get_running_loop().create_future()
        self._jobs[number] = future
        log = str(Path(self._folder.name) / f"{number}.log")
        self._tell(id=number, job=job, case=case, log=log, **options)

        async def ended():
            said = await future
            text = Path(log).read_text(errors="replace") if Path(log).exists() else ""
            return Ended(said["status"], said["result"], text, said["cpu_s"])

        return number, asyncio.ensure_future(ended())

    def send_signal(self, number: int, signum: int) -> None:
        """To a job that was started here, by its number."""
        self._tell(id=number, signal=int(signum))

    async def stopped(self, number: int, ended: asyncio.Future, timeout_s: float = 30) -> bool:
        """Wait until a job has stopped itself; False when it came to its end instead."""
        for _ in range(int(timeout_s / 0.01)):
            if ended.done():
                return False
            with contextlib.suppress(OSError):
                if number in self._pids and Path(f"/proc/{self._pids[number]}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    return True
            await asyncio.sleep(0.01)
        return False

    async def run(self, job: str, case: dict, *, timeout_s: float = 30, **options) -> Ended:
        """Run a job to its end. One that takes longer than `timeout_s` is killed and said so."""
        number, ended = self.start(job, case, **options)
        try:
            return await asyncio.wait_for(asyncio.shield(ended), timeout_s)
        except TimeoutError:
            self.send_signal(number, signal.SIGKILL)
            over = await ended
            return Ended(124, {"error": f"not ended after {timeout_s} s"}, over.log)

    async def warm(self, job: str, case: dict) -> Ended:
        """Run a job once and import here whatever it imported, so that no later one has to."""
        ended = await self.run(job, case, modules=True, timeout_s=60)
        self._tell(**{"import": ended.result.get("modules", [])})
        return ended

    async def __aexit__(self, *_):
        self.process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), 10)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self._reader.cancel()
        self._errors.close()
        self._folder.cleanup()


if __name__ == "__main__":
    words = json.loads(sys.argv[1])
    sys.path[:0] = words["folders"]
    serve(words["watched"], words["modules"])
