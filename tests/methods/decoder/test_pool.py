"""LLaVolta's compressor against a loop from the paper, and what a live model's next layer reads."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.methods.decoder.pool import PoolDecoder
from foveate.testing.layer_tokens import layer_tokens
from tests.families.zoo import zoo
from tests.runtime.test_decoder_hooks import deep, text_of


@pytest.mark.parametrize(("size", "stride"), [(24, 8), (24, 2), (6, 6), (9, 3)])
def test_is_average_pooling_with_mean_positions(size: int, stride: int) -> None:
    tokens = layer_tokens(size, seed=size)
    selection = PoolDecoder()(tokens, size // stride)
    selection.check(size)
    for row in range(size // stride):
        members = range(row * stride, (row + 1) * stride)
        mean = sum(tokens.features[place] for place in members) / stride
        torch.testing.assert_close(selection.features[row], mean)
        assert int(selection.indices[row]) == int(sum(members) / stride)  # positions: the mean, rounded down
        assert selection.sources(row).tolist() == list(members)


@pytest.mark.parametrize(("size", "count"), [(10, 3), (7, 5), (23, 4), (5, 1)])
def test_no_token_is_lost_where_strides_do_not_divide(size: int, count: int) -> None:
    selection = PoolDecoder()(layer_tokens(size), count)
    selection.check(size)
    sizes = selection.assignment.bincount(minlength=count)
    assert int(sizes.sum()) == size
    assert int(sizes.max()) - int(sizes.min()) <= 1
    assert bool((selection.assignment.diff() >= 0).all())


def test_equal_tokens_stay_what_they_are() -> None:
    tokens = layer_tokens(12)
    tokens.features[:] = tokens.features[0].clone()
    torch.testing.assert_close(PoolDecoder()(tokens, 3).features, tokens.features[:3])


@pytest.mark.parametrize(("num_layers", "layer"), [(32, 2), (28, 2), (4, 1), (64, 4)])
def test_acts_where_the_paper_says(num_layers: int, layer: int) -> None:
    assert PoolDecoder().layers(num_layers) == (layer,)


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "llava-uhd"])
def test_a_live_model_reads_means_and_its_gradient_is_shared(kind: str) -> None:
    specimen = zoo()[kind]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), (((4, 6),),))
    before, after = text_of(model).layers[:2]
    made: list[torch.Tensor] = []
    read: list[torch.Tensor] = []

    def keep(module: object, args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        made.append(output)

    with foveate.compress(model, "pool-decoder:25%@1") as handle:
        hooks = [
            before.register_forward_hook(keep),
            after.input_layernorm.register_forward_pre_hook(lambda module, args: read.append(args[0])),
        ]
        try:
            model(**inputs)
            (image,) = handle.report().images
        finally:
            for hook in hooks:
                hook.remove()
    count, length = image.tokens_in, made[0].shape[1]
    (layer,) = image.layers
    assert layer.tokens_kept == count // 4
    assert read[0].shape[1] == length - count + count // 4
    place = int((inputs["input_ids"][0] == specimen_token(model)).nonzero()[0])
    own = made[0][0, place : place + count]
    expected = torch.cat([made[0][0, :place], own.unflatten(0, (-1, 4)).mean(1), made[0][0, place + count :]])
    torch.testing.assert_close(read[0][0], expected, atol=1e-5, rtol=1e-5)
    read[0][0, place].sum().backward()
    torch.testing.assert_close(made[0].grad[0, place : place + 4], torch.full_like(own[:4], 0.25))


def specimen_token(model: object) -> int:
    family = foveate.families.family_of(model)
    return family.placeholder(family.core(model), "image")


def test_stages_of_one_plan_pool_what_was_pooled() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, (((4, 4),),))
    with foveate.compress(model, "pool-decoder:50%@2,4") as handle, torch.no_grad():
        model(**inputs)
        counts = [layer.tokens_kept for layer in handle.report().images[0].layers]
    tokens = handle.report().images[0].tokens_in
    assert counts == [round(tokens / 2), round(round(tokens / 2) / 2)]
