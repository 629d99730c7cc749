"""Where the real data for tests lies: beside the repository, in ``shared/vectors``."""

from __future__ import annotations

from pathlib import Path


def vectors(folder: str) -> Path:
    """A folder of the vectors. Fails with a clear word if it is not there: these tests are never skipped."""
    root = Path(__file__).resolve().parents[2]
    found = root.parent / "shared" / "vectors" / folder
    assert found.is_dir(), f"the real data for this test is missing: {found} is not there"
    return found
