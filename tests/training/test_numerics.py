"""Settings of torch that a fit needs, and that are as they were afterwards."""

from __future__ import annotations

import os

import pytest
import torch

from tests.training.fitting import CPU
from unseen_ray.training.hardware import numerics


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("asked", [False, True])
def test_the_compiler_is_as_deterministic_as_torch(before: int, asked: bool) -> None:
    import torch._inductor.config as compiler

    kept, variable = torch.get_deterministic_debug_mode(), os.environ.get("TORCHINDUCTOR_DETERMINISTIC")
    torch.set_deterministic_debug_mode(before)
    try:
        with numerics(1, asked, CPU):
            assert torch.get_deterministic_debug_mode() == (2 if asked else 0)
            assert compiler.deterministic == asked
            assert os.environ["TORCHINDUCTOR_DETERMINISTIC"] == str(int(asked))  # for a compiler that is imported later
        assert torch.get_deterministic_debug_mode() == before
        assert compiler.deterministic == (before > 0)
        assert os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == variable
    finally:
        torch.use_deterministic_algorithms(kept > 0, warn_only=kept == 1)
