"""Runs the shared test suites of foveate on a method of another package."""

from foveate_brightest import Brightest

from foveate.testing import LivePromises, PreLLMPromises


class TestBrightest(PreLLMPromises, LivePromises):
    """The method with its defaults and with a different power."""

    methods = (Brightest(), Brightest(power=1.0))
