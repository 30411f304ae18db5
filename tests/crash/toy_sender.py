"""The order path in miniature: one journal, one venue, one sender; with a planted fault on request.

Journal and venue are append-only files, so that they survive the process as servers would.
"""
import asyncio
from pathlib import Path


async def append(path: Path, line: str) -> None:
    await asyncio.sleep(0)
    with path.open("a") as f:
        f.write(line + "\n")
    await asyncio.sleep(0)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def send(folder: Path, order: str) -> None:
    await append(folder / "venue", order)


async def submit(case: dict) -> None:
    """Five awaits in three coroutines: see the count in the test."""
    folder = Path(case["folder"])
    if case["marks"] == "before":
        await append(folder / "journal", "sending")
    await send(folder, case["order"])
    if case["marks"] == "after":
        await append(folder / "journal", "sending")
    await append(folder / "journal", "sent")


async def recover(case: dict) -> str:
    """A sender that marks before sending looks first when it finds a mark; one that marks afterwards believes its journal."""
    folder = Path(case["folder"])
    journal = lines(folder / "journal")
    if "sending" in journal and case["order"] in lines(folder / "venue"):
        return "was there"
    if "sent" not in journal:
        await send(folder, case["order"])
    return "sent"
