"""The promises of foveate, kept by a method of another package."""

from foveate_brightest import Brightest

from foveate.testing import LivePromises, PreLLMPromises


class TestBrightest(PreLLMPromises, LivePromises):
    """Of the method with its defaults and with another power."""

    methods = (Brightest(), Brightest(power=1.0))
