"""A live store of a test's own."""
import asyncio

import pytest

from deskbook.stores.live import open_live


@pytest.fixture
def at(valkey_url, key_prefix):
    """at(body): run `await body(live)` on a store of this test's own."""
    def run(body):
        async def whole():
            live = open_live(valkey_url, key_prefix, timeout_s=5)
            try:
                return await body(live)
            finally:
                await live.aclose()
        return asyncio.run(whole())
    return run
