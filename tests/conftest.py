"""What every test starts from: no network, one thread, a fixed seed, the same fonts."""

import os

# Before torch and transformers are imported; processes that tests start inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import importlib.util
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

torch.set_num_threads(1)

# A shell ignores SIGINT in its background jobs, and processes that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests render does not depend on the fonts of the machine: those of matplotlib, or only Pillow's own without it.
_MATPLOTLIB = importlib.util.find_spec("matplotlib")
_FONTS = Path(_MATPLOTLIB.origin).parent / "mpl-data/fonts/ttf" if _MATPLOTLIB and _MATPLOTLIB.origin else ""
os.environ["FOVEATE_FONTS"] = str(_FONTS)

# Examples are the same in every run of `make test`, and a slow machine is no failure.
settings.register_profile("foveate", deadline=None, derandomize=True, print_blob=True)
# Other examples in every run, for `make test-all`: what they find is printed with the line that finds it again.
settings.register_profile("random", deadline=None, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("FOVEATE_HYPOTHESIS", "foveate"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _progress_bars() -> Generator[None]:
    """A command has its process to itself and may hide the bars of transformers; here it shares one."""
    shown = logging.is_progress_bar_enabled()
    yield
    if shown:
        logging.enable_progress_bar()
