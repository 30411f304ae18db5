"""A desk of its own for each test."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from books import Desk


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path)
