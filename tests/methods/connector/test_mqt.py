"""MQT as a plan: tokens are a prefix of the uncompressed ones."""

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from tests.models.connectors.small_options import options_of
from tests.models.llava.small_llava import small_batch, small_llava, small_processor


@pytest.fixture
def made():
    options = options_of("mqt")
    return small_llava("mqt", **options), small_batch(small_processor("mqt", **options))


def test_the_language_model_reads_the_first_tokens(made):
    model, inputs = made
    read = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    full = model.get_image_features(inputs["pixel_values"]).pooler_output[2]
    for count in (1, 7, 35):
        read.clear()
        with foveate.compress(model, f"mqt:{count}"), torch.no_grad():
            model(**inputs)
        torch.testing.assert_close(read[0][1, -1 - count : -1], full[:count], atol=1e-6, rtol=1e-5)


def test_a_fraction_is_of_the_queries_and_more_than_all_is_all(made):
    model, inputs = made
    for plan, count in (("mqt:25%", 9), ("mqt:100", 36)):
        with foveate.compress(model, plan) as handle:
            model(**inputs)
            assert [image.tokens_kept for image in handle.report().images] == [count] * 3


def test_another_connector_is_refused():
    with pytest.raises(FoveateError, match="mqt needs the connector mqt, and this model has m3"):
        foveate.compress(small_llava("m3"), "mqt:4")
