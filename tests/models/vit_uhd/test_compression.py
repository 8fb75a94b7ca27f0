"""Windowed token compression: average and content-adaptive stages, alone and inside the encoder."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate import FoveateError, ViTUHDConfig, ViTUHDModel
from foveate.models.vit_uhd.compression import AveragePooling, ContentAdaptivePooling
from foveate.models.vit_uhd.layout import Layout

WIDTH = 16


def small_model(stages: list[int], method: str | list[str] = "content-adaptive", **options) -> ViTUHDModel:
    torch.manual_seed(0)
    config = ViTUHDConfig(
        patch_size=4,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        init_pos_emb_height=4,
        init_pos_emb_width=4,
        merger_layer_index=stages,
        merging_method=method,
        initializer_range=0.2,
        **options,
    )
    return ViTUHDModel(config).eval()


def fresh_stage() -> ContentAdaptivePooling:
    """The stage as a new model has it."""
    return small_model([1]).encoder.blocks[1].merger.double()


def trained_stage(seed: int = 0) -> ContentAdaptivePooling:
    """A stage whose weights are far from uniform."""
    torch.manual_seed(seed)
    stage = ContentAdaptivePooling(WIDTH).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.5)
    return stage


def released_initialisation() -> ContentAdaptivePooling:
    """What the authors' tower loader leaves behind: every parameter of a stage set to zero."""
    stage = ContentAdaptivePooling(WIDTH).double()
    for parameter in stage.parameters():
        nn.init.zeros_(parameter)
    return stage


def windows(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, WIDTH, dtype=torch.float64, generator=generator)


def pool_images(x: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """avg_pool2d of every image of a packed sequence, one at a time."""
    pooled = []
    for image, (rows, columns) in zip(x.split(grids.prod(1).tolist()), grids.tolist(), strict=True):
        plane = image.view(rows, columns, -1).permute(2, 0, 1)
        pooled.append(F.avg_pool2d(plane[None], 2)[0].flatten(1).T)
    return torch.cat(pooled)


def through_stage(stage: nn.Module, x: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    layout = Layout.from_grids(grids, len(x), 1)
    return layout.merged().unpack(stage(layout.windows(layout.pack(x))))


GRIDS = torch.tensor([[4, 6], [2, 2], [8, 2], [4, 6], [2, 10]])


@pytest.mark.parametrize("make", [AveragePooling, fresh_stage, released_initialisation])
def test_a_fresh_stage_is_average_pooling(make) -> None:
    x = torch.randn(int(GRIDS.prod(1).sum()), WIDTH, dtype=torch.float64)
    torch.testing.assert_close(through_stage(make(), x, GRIDS), pool_images(x, GRIDS), rtol=0, atol=1e-14)
    stage = make().float()
    single = through_stage(stage, x.float(), GRIDS)
    torch.testing.assert_close(single, pool_images(x.float(), GRIDS), rtol=0, atol=1e-6)


def test_content_adaptive_equations() -> None:
    """l = W2 gelu(W1 [x_s; m] + b1) + b2; softmax over the four tokens for each channel, one number at a time."""
    stage = trained_stage()
    first, _, second = stage.attn_layer
    x = windows(3)
    with torch.no_grad():
        output, weights = stage(x), stage.weights(x)
        for index, window in enumerate(x):
            mean = sum(window) / 4
            logits = []
            for token in window:
                hidden = first.weight @ torch.cat([token, mean]) + first.bias
                hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
                logits.append((second.weight @ hidden + second.bias).tolist())
            for channel in range(WIDTH):
                exponentials = [math.exp(logits[token][channel]) for token in range(4)]
                expected = [value / sum(exponentials) for value in exponentials]
                assert weights[index, :, channel].tolist() == pytest.approx(expected, abs=1e-10)
                mixed = sum(w * v for w, v in zip(expected, window[:, channel].tolist(), strict=True))
                assert output[index, channel].item() == pytest.approx(mixed, abs=1e-10)


def test_weights_are_a_distribution_over_the_window_for_each_channel() -> None:
    weights = trained_stage().weights(windows(7))
    assert weights.shape == (7, 4, WIDTH)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(7, WIDTH, dtype=torch.float64))
    assert weights.max() > 0.9  # far from the uniform quarter
    assert (weights[:, :, 0] - weights[:, :, 1]).abs().max() > 0.1  # channels differ


def test_tokens_of_a_window_may_be_permuted() -> None:
    stage, x = trained_stage(), windows(6)
    for order in ([3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [1, 2, 3, 0]):
        torch.testing.assert_close(stage(x[:, order]), stage(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(stage.weights(x[:, order]), stage.weights(x)[:, order], rtol=0, atol=1e-12)


def test_windows_are_independent_and_may_be_permuted() -> None:
    stage, x = trained_stage(), windows(6)
    order = [4, 0, 5, 2, 1, 3]
    torch.testing.assert_close(stage(x[order]), stage(x)[order], rtol=0, atol=1e-12)
    changed = x.clone()
    changed[2] += 1
    torch.testing.assert_close(stage(changed)[[0, 1, 3, 4, 5]], stage(x)[[0, 1, 3, 4, 5]], rtol=0, atol=1e-12)


def test_a_constant_moves_the_output_by_itself_under_frozen_weights() -> None:
    stage, x = trained_stage(), windows(4)
    shift = torch.linspace(-2, 3, WIDTH, dtype=torch.float64)
    shifted = (stage.weights(x) * (x + shift)).sum(1)
    torch.testing.assert_close(shifted, stage(x) + shift, rtol=0, atol=1e-12)


def backward(stage: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients after one backward pass of a loss that prefers the first token of every window."""
    x = windows(32)
    (stage(x) - x[:, 0]).square().mean().backward()
    return {name: parameter.grad for name, parameter in stage.named_parameters()}


def test_only_the_second_matrix_gets_a_gradient_at_step_zero() -> None:
    """W1 and b1 are behind W2 = 0, and a bias on the logits cancels in the softmax."""
    gradients = backward(fresh_stage())
    assert gradients["attn_layer.2.weight"].abs().max() > 1e-4
    assert gradients["attn_layer.0.weight"].abs().max() == 0
    assert gradients["attn_layer.0.bias"].abs().max() == 0
    assert gradients["attn_layer.2.bias"].abs().max() < 1e-15


def test_the_released_initialisation_has_no_gradient_at_all() -> None:
    for name, gradient in backward(released_initialisation()).items():
        limit = 1e-15 if name == "attn_layer.2.bias" else 0.0
        assert gradient.abs().max() <= limit, name


def test_ours_learns_where_the_released_initialisation_stays_average_pooling() -> None:
    """The target is the token with the largest first channel, which average pooling cannot give."""
    x = windows(256)
    target = x[torch.arange(len(x)), x[:, :, 0].argmax(1)]
    losses = {}
    for name, stage in (("ours", fresh_stage()), ("released", released_initialisation())):
        optimizer = torch.optim.SGD(stage.parameters(), lr=5.0)
        losses[name] = []
        for _ in range(200):
            loss = (stage(x) - target).square().mean()
            losses[name].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        departure = (stage(x) - x.mean(1)).abs().max()
        if name == "released":
            assert departure < 1e-12
            assert stage.attn_layer[0].weight.abs().max() == 0
            assert stage.attn_layer[2].weight.abs().max() == 0
        else:
            assert departure > 0.5
    assert losses["ours"][0] == pytest.approx(losses["released"][0], rel=1e-12)
    assert losses["released"][-1] == pytest.approx(losses["released"][0], rel=1e-9)
    assert losses["ours"][-1] < 0.7 * losses["ours"][0]


def test_a_new_model_starts_as_average_pooling_everywhere() -> None:
    """All stages of a model, not only one called by hand: transformers must really run the initialisation."""
    learned, average = small_model([0, 2]), small_model([0, 2], "average")
    average.load_state_dict(
        {name: value for name, value in learned.state_dict().items() if ".merger." not in name}, strict=True
    )
    grids = torch.tensor([[4, 8], [8, 4]])
    patches = torch.randn(64, 3, 4, 4)
    with torch.no_grad():
        expected = average(patches, grids).last_hidden_state
        torch.testing.assert_close(learned(patches, grids).last_hidden_state, expected, rtol=0, atol=1e-5)


def trained_model(stages: list[int], method: str | list[str] = "content-adaptive", **options) -> ViTUHDModel:
    model = small_model(stages, method, **options)
    for name, parameter in model.named_parameters():
        if ".merger." in name:
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("method", ["content-adaptive", "average", "early"])
@pytest.mark.parametrize("stages", [[], [1], [0, 1], [0, 2, 3], [0, 1, 2, 3]])
def test_any_number_of_stages_packed_equals_alone(stages: list[int], method: str) -> None:
    model = trained_model(stages, method)
    factor = 2 ** len(stages)
    grids = torch.tensor([[1, 2], [2, 1], [1, 1], [1, 2], [3, 1]]) * factor
    patches = torch.randn(int(grids.prod(1).sum()), 3, 4, 4)
    with torch.no_grad():
        together = model(patches, grids)
        alone = [
            model(image, grid[None]) for image, grid in zip(patches.split(grids.prod(1).tolist()), grids, strict=True)
        ]
    assert torch.equal(together.grid_hws, grids // factor)
    expected = torch.cat([output.last_hidden_state for output in alone])
    assert len(expected) == int((grids // factor).prod(1).sum())
    torch.testing.assert_close(together.last_hidden_state, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", ["content-adaptive", "average", "early"])
def test_an_image_does_not_see_its_neighbours(method: str) -> None:
    model = trained_model([0, 2], method)
    grids = torch.tensor([[4, 4], [4, 8], [4, 4]])
    patches = torch.randn(64, 3, 4, 4)
    changed = patches.clone()
    changed[16:48] += 1
    with torch.no_grad():
        before, after = model(patches, grids).last_hidden_state, model(changed, grids).last_hidden_state
    torch.testing.assert_close(before[[0, 3]], after[[0, 3]], rtol=0, atol=1e-6)
    assert (before[1:3] - after[1:3]).abs().max() > 1e-2


def test_stages_of_different_kinds_in_one_model() -> None:
    model = trained_model([0, 1, 2], ["early", "content-adaptive", "average"])
    kinds = [type(block.merger).__name__ for block in model.encoder.blocks]
    assert kinds == ["EarlyCompressor", "ContentAdaptivePooling", "AveragePooling", "NoneType"]
    grids = torch.tensor([[8, 16]])
    with torch.no_grad():
        output = model(torch.randn(128, 3, 4, 4), grids, output_hidden_states=True)
    assert [len(hidden) for hidden in output.hidden_states] == [128, 32, 8, 2, 2]


@pytest.mark.parametrize(("side", "tokens", "published"), [(512, 144, 163), (768, 361, 368), (1024, 625, 655)])
def test_tokens_of_the_released_geometry(side: int, tokens: int, published: int) -> None:
    """Patch 10 and two stages: one token per 40 x 40 px; the published counts are side^2 / 1600."""
    config = ViTUHDConfig()
    assert (side // config.unit) ** 2 == tokens
    assert tokens <= published == side**2 // config.unit**2


@pytest.mark.parametrize(
    ("stages", "grid"), [([1], [3, 4]), ([1], [4, 5]), ([0, 1], [4, 6]), ([0, 1, 2], [8, 12]), ([0], [1, 1])]
)
def test_grids_that_a_stage_cannot_divide_are_refused(stages: list[int], grid: list[int]) -> None:
    model = small_model(stages)
    grids = torch.tensor([[8, 8], grid])
    patches = torch.randn(64 + grid[0] * grid[1], 3, 4, 4)
    with pytest.raises(FoveateError, match=rf"image 1 has {grid[0]} x {grid[1]} .* multiples of {2 ** len(stages)}"):
        model(patches, grids)


def test_a_kind_stays_with_the_block_it_was_named_for() -> None:
    config = ViTUHDConfig(
        num_hidden_layers=4, merger_layer_index=[3, 0, 2], merging_method=["early", "avg_pooling", "m_pooling"]
    )
    assert config.merger_layer_index == [0, 2, 3]
    assert config.stage_methods == ["average", "content-adaptive", "early"]
    again = ViTUHDConfig.from_dict(config.to_dict())
    assert (again.merger_layer_index, again.stage_methods) == (config.merger_layer_index, config.stage_methods)
