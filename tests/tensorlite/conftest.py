"""What tests of the engine share."""

from __future__ import annotations

import pytest

from tensorlite.device import require_cuda


@pytest.fixture(scope="session", params=["cpu", "cuda:0"])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn; CUDA is skipped, with the reason, where it cannot be used."""
    if request.param != "cpu":
        try:
            require_cuda(request.param)
        except RuntimeError as missing:
            pytest.skip(str(missing))
    return request.param
