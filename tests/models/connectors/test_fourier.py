"""Fourier-VLM."""

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.methods.shared.low_pass import low_pass
from foveate.models.connectors import build_connector
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration
from tests.models.llava.small_llava import small_batch, small_llava, small_processor
from tests.models.llava.test_llava_conversion import write_released


@pytest.fixture(scope="module")
def features():
    return torch.randn(2, 576, 6, generator=torch.Generator().manual_seed(1))


def test_the_projector_reads_the_filtered_features(features):
    connector = build_connector("fourier", 6, 10).eval()
    tokens, output = connector(features, Grid(24, 24))
    assert output == Grid(12, 12)
    expected = connector.project(low_pass(features, Grid(24, 24), output, rescale=False))
    torch.testing.assert_close(tokens, expected)
    after = low_pass(connector.project(features), Grid(24, 24), output, rescale=False)
    assert not torch.allclose(tokens, after, atol=1e-2)


def test_lengths_of_the_paper():
    for ratio, count in ((2 / 3, 256), (1 / 2, 144), (1 / 3, 64), (1 / 4, 36)):
        assert build_connector("fourier", 6, 10, ratio=ratio).output_grid(Grid(24, 24)).size == count
        assert build_connector("fourier", 6, 10).output_grid(Grid(24, 24), count).size == count


def test_rescaling_divides_by_the_gain_of_a_constant(features):
    plain, rescaled = (build_connector("fourier", 6, 10, rescale=rescale) for rescale in (False, True))
    rescaled.load_state_dict(plain.state_dict())
    expected, _ = rescaled(2 * features, Grid(24, 24), 144)
    torch.testing.assert_close(plain(features, Grid(24, 24), 144)[0], expected)


def test_a_budget_gives_the_tokens_of_a_connector_with_that_ratio(features):
    half, quarter = build_connector("fourier", 6, 10), build_connector("fourier", 6, 10, ratio=0.25)
    quarter.load_state_dict(half.state_dict())
    assert torch.equal(half(features, Grid(24, 24), 36)[0], quarter(features, Grid(24, 24))[0])


def test_a_checkpoint_of_the_authors_is_read_as_one_of_llava(tmp_path):
    native = write_released(tmp_path, "mlp")
    chosen = {"connector_type": "fourier", "connector_options": {"ratio": 0.34}}
    config = FoveateLlavaConfig.from_pretrained(tmp_path, **chosen)
    model = FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path, config=config).eval()
    expected = small_llava("fourier", ratio=0.34)
    expected.load_state_dict(native.state_dict())
    inputs = small_batch(small_processor("fourier", ratio=0.34))
    with torch.no_grad():
        assert torch.equal(
            torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output),
            torch.cat(expected.get_image_features(inputs["pixel_values"]).pooler_output),
        )


def test_bad_options():
    for ratio in (0, 1.5, True, "half"):
        with pytest.raises(FoveateError, match="ratio must be a number above 0, up to 1"):
            build_connector("fourier", 6, 10, ratio=ratio)
    with pytest.raises(FoveateError, match="rescale must be true or false"):
        build_connector("fourier", 6, 10, rescale=1)
