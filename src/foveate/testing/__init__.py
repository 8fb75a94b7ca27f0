"""Suites that check a method of another package, in a few lines of a test file.

    from foveate.testing import LivePromises, PreLLMPromises
    from my_package import Mine

    class TestMine(PreLLMPromises, LivePromises):
        methods = (Mine(),)

`PreLLMPromises`, `DecoderPromises` and `EncoderPromises` check the maths without a model: places that ascend and stand
once each, budgets met exactly, the same choice twice, any grid, any precision, a text form that reads back.
`LivePromises` attaches the method to a small model with random weights: a full budget changes no bit, taking it off
leaves the model as it was, and writing with a cache is writing without. It needs pytest.
"""

from __future__ import annotations

import pytest

for _name in ("promises", "pre_llm", "decoder", "encoder", "live"):  # a failing assert shows its values
    pytest.register_assert_rewrite(f"{__name__}.{_name}")

from foveate.testing.decoder import DecoderPromises  # noqa: E402
from foveate.testing.encoder import EncoderPromises  # noqa: E402
from foveate.testing.live import LivePromises  # noqa: E402
from foveate.testing.pre_llm import PreLLMPromises  # noqa: E402

__all__ = ["DecoderPromises", "EncoderPromises", "LivePromises", "PreLLMPromises"]
