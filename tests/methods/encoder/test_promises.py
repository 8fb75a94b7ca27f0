"""The promises of every method inside the encoder. A new method is tested by being registered."""

from __future__ import annotations

from foveate.core.method import Site
from foveate.core.registry import methods_at
from foveate.methods.encoder.dymu import DyMU
from foveate.testing import EncoderPromises
from foveate.testing.encoder import BLOCKS


class TestEncoderMethods(EncoderPromises):
    methods = tuple(
        DyMU(thresholds=(0.1,) * BLOCKS) if cls is DyMU else cls() for cls in methods_at(Site.ENCODER).values()
    )
