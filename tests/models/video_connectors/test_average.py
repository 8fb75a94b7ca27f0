"""Average pooling of clips: a loop over bins, and options."""

import math

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import ClipShape, build_video_connector


@pytest.mark.parametrize(
    ("options", "shape"), [({"scale": 2, "frames_per_token": 2}, (3, 3, 4)), ({"frames": 2}, (2, 3, 4))]
)
def test_equals_a_loop_over_bins(options, shape):
    torch.manual_seed(0)
    connector = build_video_connector("average", 8, 6, **options).eval()
    features = torch.randn(5, 5 * 7, 8)
    assert connector.output_shape(5, Grid(5, 7)) == ClipShape(*shape)
    with torch.no_grad():
        tokens = connector(features, Grid(5, 7)).view(*shape, 6)
        volume = features.view(5, 5, 7, 8)

        def bins(count: int, length: int) -> list[slice]:
            return [slice(i * length // count, math.ceil((i + 1) * length / count)) for i in range(count)]

        for t, frames in enumerate(bins(shape[0], 5)):
            for i, rows in enumerate(bins(shape[1], 5)):
                for j, columns in enumerate(bins(shape[2], 7)):
                    mean = volume[frames, rows, columns].flatten(0, 2).mean(0)
                    torch.testing.assert_close(tokens[t, i, j], connector.projector(mean), atol=1e-5, rtol=1e-4)


def test_shorter_clips_keep_their_frames():
    assert build_video_connector("average", 8, 6, frames=4).output_shape(3, Grid(6, 6)) == ClipShape(3, 3, 3)


def test_bad_options():
    for options, message in (
        ({"scale": 0}, "scale must be a whole number from 1 on"),
        ({"frames": 0}, "frames must be a whole number from 1 on"),
        ({"frames": 2, "frames_per_token": 2}, "frames or frames_per_token, not both"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_video_connector("average", 8, 6, **options)
