"""PVC: a loop over squares, its numbers of tokens, and the model with its encoder."""

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.temporal_pvc import TemporalPVCConfig
from foveate.models.video_connectors import ClipShape, build_video_connector, video_connector_of_sizes
from tests.models.encoders.small_encoders import small_config
from tests.models.llava_video.small_llava_video import small_llava_video


def test_equals_a_loop_over_squares():
    torch.manual_seed(0)
    connector = build_video_connector("temporal_pvc", 8, 6, scale=2).eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.3)
        features, times = torch.randn(3, 24, 8), torch.tensor([1.0, 2.0, 5.0])
        tokens = connector(features, Grid(4, 6), times).view(3, 2, 3, 6)
        for frame, time in enumerate((0.0, 250.0, 1000.0)):
            wave = [function(torch.tensor(time) * 10_000 ** (-i / 128)) for function in (torch.cos, torch.sin)
                    for i in range(128)]  # fmt: skip
            embedding = connector.timesteps.fc1(torch.stack(wave))
            gamma, beta = connector.norm.modulation(
                connector.timesteps.fc2(embedding * embedding.sigmoid())
            ).split(32)  # fmt: skip
            for i in range(2):
                for j in range(3):
                    square = features[frame].view(4, 6, 8)[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(32)
                    hidden = connector.norm.norm(square) * (1 + gamma) + beta
                    expected = connector.projector(hidden)
                    torch.testing.assert_close(tokens[frame, i, j], expected, atol=1e-4, rtol=1e-4)


def test_tokens_of_the_paper():
    connector = video_connector_of_sizes("temporal_pvc")
    grid = TemporalPVCConfig().output_grid(448, 448)
    assert connector.output_shape(96, grid) == ClipShape(96, 8, 8) and connector.output_shape(96, grid).size == 96 * 64
    assert connector.image_frames == 4 and connector.output_shape(connector.image_frames, grid).size == 256


def test_an_image_is_a_clip_of_equal_frames_and_later_frames_change_no_earlier_tokens():
    encoder = small_config("temporal_pvc")
    model = small_llava_video("temporal_pvc", encoder, scale=3)
    torch.nn.init.normal_(model.model.multi_modal_projector.norm.modulation.weight, std=0.3)
    pixels = torch.randn(2, 4, 3, 48, 48)
    with torch.no_grad():
        image = model.get_image_features(pixels[:, 0]).pooler_output[1].view(4, 4, -1)
        still = model.get_video_features(pixels[1:, :1].expand(-1, 4, -1, -1, -1)).pooler_output[0].view(4, 4, -1)
        assert torch.equal(image, still) and not torch.allclose(image[0], image[1], atol=1e-3)
        seconds = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0, 0.0]])
        counts = torch.tensor([4, 2])
        before = model.get_video_features(pixels, counts, seconds).pooler_output
        pixels[0, 2] += 1
        after = model.get_video_features(pixels, counts, seconds).pooler_output
    assert [len(clip) for clip in before] == [16, 8] and torch.equal(before[1], after[1])
    assert torch.equal(before[0][:8], after[0][:8]) and not torch.allclose(before[0][8:12], after[0][8:12], atol=1e-3)


def test_bad_options():
    for options, message in (
        ({"scale": 0}, "scale must be a whole number"),
        ({"image_frames": 0}, "image_frames must be a whole number"),
        ({"time_scale": -1.0}, "time_scale must be above 0"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_video_connector("temporal_pvc", 8, 6, **options)
