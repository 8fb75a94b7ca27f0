"""What a test expects of a refusal: its code, and only where the sentence matters its words."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from foveate.core.errors import FoveateError


@contextmanager
def refused(code: str, words: str = "") -> Generator[None]:
    """Expect an error that stands for a refusal with this code, in one sentence.

    Args:
        code: Of the refusal.
        words: A pattern that the sentence holds.
    """
    with pytest.raises(FoveateError) as caught:
        yield
    error = caught.value
    assert error.code == code, f"{error.code!r} in place of {code!r}: {error}"
    assert str(error).endswith(".") and "\n" not in str(error)
    assert re.search(words, str(error))
