import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Find the data sets that tests may use where they are: too large, and not ours, to be kept beside the tests."""
    path = Path(os.environ.get("PLD_TEST_DATA") or Path(tempfile.gettempdir()) / "pld-data")
    if not path.is_dir():
        pytest.skip(f"no data at {path}: set PLD_TEST_DATA")
    return path
