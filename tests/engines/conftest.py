"""What the tests of several engines share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.adapter_fixture import make_adapter


@pytest.fixture(scope="session")
def embedded_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder of random weights for the embedded model."""
    return make_adapter(tmp_path_factory.mktemp("adapter"))
