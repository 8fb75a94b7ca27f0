"""EchoingPixels extends a class that older versions of transformers lack (`tests/test_compat.py` has the refusal)."""

from foveate import compat

collect_ignore = [] if compat.HAS_OMNI_THINKER_MODEL else ["test_echoing_pixels.py"]
