"""Where a process can die: every await of the code under test, found by the interpreter and not by hand.

`Watch` asks `sys.monitoring` for the events of every function of the watched modules. An await gives up to four points:

    before   the awaited thing exists, nothing of it ran yet
    during   the coroutine is suspended: what it asked for is under way, the answer is not read
    after    the await returned, nothing was done with the result yet
    raised   an exception of the await (or of a line) is about to be handled

With `lines=True` the first instruction of every source line is a point as well, in plain functions too.
A point is named by function, place, kind and visit, so that it is the same in every process that runs the same code.
"""
import asyncio
import dis
import gc
import inspect
import os
import re
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

TOOL = 4
BEFORE = {dis.opmap["GET_AWAITABLE"], dis.opmap["GET_ANEXT"]}
AFTER = {dis.opmap["END_SEND"]}
LEAVING = {dis.opmap["CALL_INTRINSIC_1"]}  # the end of every coroutine that an exception leaves: nobody's handler
ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


@dataclass(frozen=True, order=True)
class Point:
    """One moment of a run."""
    module: str
    function: str
    line: int  # within the source file, for people
    offset: int  # of the instruction within the function
    kind: str  # before, during, after, raised, line
    task: str  # kind of task, e.g. "submit": the first word of its name
    visit: int  # 1 for the first time such a task passes this place
    step: int = 0  # the run's step of the event loop; between two points of one step nothing else in the process can happen

    def __str__(self):
        return f"{self.module}:{self.function} line {self.line} {self.kind} #{self.visit} in {self.task or 'no task'}"

    @property
    def place(self):
        return self.module, self.function, self.offset, self.kind, self.task

    @property
    def name(self):
        return *self.place, self.visit

    def to_json(self):
        return asdict(self)


def loaded_modules(prefixes: Iterable[str]) -> dict[str, str]:
    """File name -> module name of what is imported and starts with one of the prefixes."""
    wanted = tuple(prefixes)
    return {m.__file__: n for n, m in sys.modules.items()
            if m is not None and getattr(m, "__file__", None) and any(n == w or n.startswith(w + ".") for w in wanted)}


def running_task():
    """The task that runs now; None outside of any."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def codes(files: Iterable[str]) -> list[types.CodeType]:
    """Every function body of these files, nested ones too."""
    files, out = set(files), {}

    def add(code):
        if code not in out:
            out[code] = None
            for const in code.co_consts:
                if isinstance(const, types.CodeType):
                    add(const)

    for f in gc.get_objects():
        if isinstance(f, types.FunctionType) and f.__code__.co_filename in files:
            add(f.__code__)
    return list(out)


class Watch:
    """Calls `on_point(point)` at every point of the watched modules until it is stopped. What passes while `Watch.paused` does not count."""
    paused = False

    def __init__(self, prefixes: Iterable[str], on_point: Callable[[Point], None], *, lines: bool = False):
        self.files, self.on_point, self.lines = loaded_modules(prefixes), on_point, lines
        self.codes = codes(self.files)
        self.visits: Counter = Counter()
        self.line_of: dict = {}
        self.suspending: object = self  # the value that the innermost coroutine just yielded
        self.busy = False
        self.steps, self.task = 0, None
        Watch.paused = False

    def _pass(self, code, offset, kind):
        if self.busy or Watch.paused:
            return
        self.busy = True
        try:
            module, task = self.files[code.co_filename], running_task()
            if task is not self.task:
                self.steps, self.task = self.steps + 1, task
            sort = re.split(r"[ -]", task.get_name())[0] if task else ""
            place = (module, code.co_qualname, offset, kind, sort)
            self.visits[place] += 1
            line = self.line_of.get((code, offset))
            if line is None:
                line = next((n for a, b, n in code.co_lines() if a <= offset < b and n), code.co_firstlineno)
                self.line_of[code, offset] = line
            self.on_point(Point(module, code.co_qualname, line, offset, kind, sort, self.visits[place], self.steps))
            if kind == "during":
                self.task = None
        finally:
            self.busy = False

    def _instruction(self, code, offset):
        op = code.co_code[offset]
        if op in BEFORE:
            self.suspending = self
            self._pass(code, offset, "before")
        elif op in AFTER:
            self.suspending = self
            self._pass(code, offset, "after")
        else:
            return sys.monitoring.DISABLE

    def _yield(self, code, offset, value):
        if type(value).__name__ == "async_generator_wrapped_value":
            return  # a generator hands out a value; nothing is suspended
        if value is self.suspending:
            return  # the coroutine around it: the same moment
        self.suspending = value
        self._pass(code, offset, "during")

    def _resume(self, code, offset):
        self.suspending = self

    def _handled(self, code, offset, error):
        if (code.co_filename in self.files and code.co_flags & ASYNC and code.co_code[offset] not in LEAVING
                and not isinstance(error, StopIteration | StopAsyncIteration)):
            self.suspending = self
            self._pass(code, offset, "raised")

    def _line(self, code, line):
        offset = next(a for a, b, n in code.co_lines() if n == line)
        self._pass(code, offset, "line")

    def __enter__(self):
        mon, e = sys.monitoring, sys.monitoring.events
        mon.use_tool_id(TOOL, "deskbook crash points")
        mon.restart_events()
        mon.register_callback(TOOL, e.INSTRUCTION, self._instruction)
        mon.register_callback(TOOL, e.PY_YIELD, self._yield)
        mon.register_callback(TOOL, e.PY_RESUME, self._resume)
        mon.register_callback(TOOL, e.EXCEPTION_HANDLED, self._handled)
        if self.lines:
            mon.register_callback(TOOL, e.LINE, self._line)
        for code in self.codes:
            wanted = e.INSTRUCTION | e.PY_YIELD | e.PY_RESUME if code.co_flags & ASYNC else 0
            if wanted or self.lines:
                mon.set_local_events(TOOL, code, wanted | (e.LINE if self.lines else 0))
        mon.set_events(TOOL, e.EXCEPTION_HANDLED)
        return self

    def __exit__(self, *_):
        mon = sys.monitoring
        mon.set_events(TOOL, 0)
        for code in self.codes:
            mon.set_local_events(TOOL, code, 0)
        mon.free_tool_id(TOOL)


def thinned(seen: list[Point]) -> list[Point]:
    """The first and last point of each uninterrupted stretch, and every suspension.

    A stretch runs from a resumption to the next suspension. The event loop runs nothing else meanwhile, and what a coroutine does to
    the outside it does before it suspends: between the first and the last point of a stretch a kill finds the same world, unless an await
    in between came back at once, which the last point has behind it.
    """
    kept, stretch = [], []
    for p in [*seen, None]:
        if p is None or p.kind == "during" or (stretch and p.step != stretch[-1].step):
            kept += stretch[:1] + stretch[1:][-1:]
            stretch = []
        if p is not None:
            kept.append(p) if p.kind == "during" else stretch.append(p)
    return kept


def recorder(seen: list[Point], visits: int) -> Callable[[Point], None]:
    """Collects points in order; of a place that is passed over and over only the first `visits`."""

    def on_point(point: Point) -> None:
        if point.visit <= visits:
            seen.append(point)

    return on_point


def killer(target: Point, hold_s: float = 0.0, signum: int = signal.SIGKILL) -> Callable[[Point], None]:
    """A signal to the own process at `target`. `hold_s`: how long the answer may travel before, for "during"."""
    name = target.name

    def on_point(point: Point) -> None:
        if point.name == name:
            if hold_s and point.kind == "during":
                time.sleep(hold_s)
            os.kill(os.getpid(), signum)

    return on_point
