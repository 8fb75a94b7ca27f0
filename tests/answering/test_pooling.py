"""What content-adaptive stages look at, as maps on the image."""

import numpy as np
import torch

from foveate.answering import ask
from foveate.answering.pooling import pooling_effect
from foveate.loading import load
from tests.tiny_model import noise, save_llava_uhd


def test_pooling_maps(pair):
    answer = ask(noise(64, 48), "?", pair, max_new_tokens=1, keep_pooling=True)
    assert [(pooling.stage, pooling.weight.shape) for pooling in answer.pooling] == [
        ("stage 1", (12, 16)),
        ("stage 2", (6, 8)),
    ]
    for pooling in answer.pooling:
        rows, columns = pooling.weight.shape
        windows = pooling.weight.reshape(rows // 2, 2, columns // 2, 2).sum((1, 3))
        np.testing.assert_allclose(windows, 1, atol=1e-5)
        assert pooling.effect.shape == pooling.weight.shape
        assert pooling.effect.max() > 0.01
        assert pooling.spread > np.sqrt(np.square(pooling.weight - 0.25).mean())  # a mean deviates less than its parts
    assert ask(noise(64, 48), "?", pair, max_new_tokens=1).pooling == []


def test_effects_of_a_window_sum_to_its_distance_from_the_average():
    torch.manual_seed(0)
    windows, weights = torch.randn(50, 4, 8), torch.randn(50, 4, 8).softmax(dim=1)
    distance = ((weights * windows).sum(1) - windows.mean(1)).norm(dim=-1)
    typical = windows.mean(1).norm(dim=-1).square().mean().sqrt()
    torch.testing.assert_close(pooling_effect(windows, weights).sum(1), distance / typical)
    average = torch.full_like(weights, 0.25)
    assert torch.equal(pooling_effect(windows, average), torch.zeros(50, 4))
    flat = windows[:, :1].expand(-1, 4, -1)  # any weights give the same output
    assert pooling_effect(flat, weights).abs().max() < 1e-6


def test_pooling_maps_lie_on_the_image(pair):
    """Tokens have an effect where the image changes within a window."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[:, 32:] = np.asarray(noise(32, 64))
    first = ask(pixels, "?", pair, max_new_tokens=1, keep_pooling=True).pooling[0]
    assert first.effect[:, :6].mean() < 0.5 * first.effect[:, 10:].mean()


def test_average_stages_have_no_maps(tmp_path):
    pair = load(save_llava_uhd(tmp_path, methods=("average", "content-adaptive", "early")))
    answer = ask(noise(64, 64), "?", pair, max_new_tokens=1, keep_pooling=True)
    assert [pooling.stage for pooling in answer.pooling] == ["stage 2"]
    assert [stage.tokens for stage in answer.stages] == [256, 64, 16, 4]
