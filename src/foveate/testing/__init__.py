"""Test suites for methods of other packages, in a few lines of a test file.

    from foveate.testing import LivePromises, PreLLMPromises
    from my_package import Mine

    class TestMine(PreLLMPromises, LivePromises):
        methods = (Mine(),)

`PreLLMPromises`, `DecoderPromises` and `EncoderPromises` check the maths without a model: indices ascend and are
unique, budgets are met exactly, selections are deterministic, any grid and precision work, a plan's text reads back.
`FrameSamplerPromises` does the same for methods that choose frames of a clip, without a file.
`LivePromises` attaches the method to a small model with random weights: a full budget changes no bit, detaching
restores the model, and generation with a cache equals generation without. It needs pytest.
"""

from __future__ import annotations

import pytest

for _name in ("promises", "pre_llm", "decoder", "encoder", "frames", "live"):  # a failing assert shows its values
    pytest.register_assert_rewrite(f"{__name__}.{_name}")

from foveate.testing.decoder import DecoderPromises  # noqa: E402
from foveate.testing.encoder import EncoderPromises  # noqa: E402
from foveate.testing.frames import FrameSamplerPromises  # noqa: E402
from foveate.testing.live import LivePromises  # noqa: E402
from foveate.testing.pre_llm import PreLLMPromises  # noqa: E402

__all__ = ["DecoderPromises", "EncoderPromises", "FrameSamplerPromises", "LivePromises", "PreLLMPromises"]
