"""TokenFLEX as a plan: the tokens of a model that is configured for the length."""

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from tests.models.llava.small_llava import small_batch, small_llava, small_processor


def test_it_equals_a_model_that_is_configured_for_the_length():
    model = small_llava("tokenflex", tokens=36)
    for count in (1, 9, 25):
        short = small_llava("tokenflex", tokens=count)
        short.load_state_dict(model.state_dict())
        expected = short(**small_batch(small_processor("tokenflex", tokens=count))).logits[:, -1]
        with foveate.compress(model, f"tokenflex:{count}"):
            logits = model(**small_batch(small_processor("tokenflex", tokens=36))).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_numbers_that_are_no_square_are_refused():
    model = small_llava("tokenflex", tokens=36)
    inputs = small_batch(small_processor("tokenflex", tokens=36))
    with foveate.compress(model, "tokenflex:10"), pytest.raises(FoveateError, match="square numbers from 1 to 36"):
        model(**inputs)
