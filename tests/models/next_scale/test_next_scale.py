"""The next-scale model: its mask, cached against uncached, saving, chance, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

import foveate
from foveate.core.errors import FoveateError
from foveate.models.next_scale import NextScaleForImageGeneration
from foveate.models.next_scale.modeling import block_causal_mask
from tests.models.next_scale.small_next_scale import small_config, small_model


def test_mask_against_a_table() -> None:
    assert block_causal_mask([1, 2]).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]
    mask = block_causal_mask([1, 2, 3])
    assert mask.sum(dim=1).tolist() == [1, *[5] * 4, *[14] * 9]


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_cached_sampling_equals_uncached(guidance: float) -> None:
    model = small_model()
    cached = model.generate([0, 3, 4], guidance=guidance, seed=5)
    uncached = model.generate([0, 3, 4], guidance=guidance, seed=5, use_cache=False)
    assert torch.equal(cached.token_ids, uncached.token_ids)
    assert torch.equal(cached.pixel_values, uncached.pixel_values)
    assert uncached.cache is None
    assert len(cached.token_ids.unique()) > 3


def test_maps_through_the_cache_have_the_logits_of_all_at_once() -> None:
    model = small_model()
    labels, ids = torch.tensor([1, 5]), torch.randint(11, (2, 30))
    output = model(labels, ids)
    logits, _ = model.score(labels, ids)
    torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits.flatten(0, 1), ids.flatten()))


def test_a_token_does_not_see_its_own_map() -> None:
    model = small_model()
    ids = torch.randint(11, (1, 30))
    before = model(torch.tensor([1]), ids).logits
    ids[0, 7] = (ids[0, 7] + 1) % 11  # of the third map, tokens 5 to 13
    after = model(torch.tensor([1]), ids).logits
    assert torch.equal(before[:, :14], after[:, :14])
    assert not torch.equal(before[:, 14:], after[:, 14:])


def test_guidance_at_the_last_map_by_hand() -> None:
    model = small_model()
    sample = model.generate([2], guidance=3.0, seed=1)
    both = model(torch.tensor([2, 5]), sample.token_ids.repeat(2, 1)).logits[:, 14:]
    noise = torch.rand(1, 16, 11, generator=torch.Generator().manual_seed(1_003)).clamp_min(1e-20).log().neg().log()
    assert torch.equal((4 * both[:1] - 3 * both[1:] - noise).argmax(dim=2), sample.token_ids[:, 14:])


def test_saving_changes_nothing(tmp_path) -> None:
    foveate.register()
    model = small_model()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = NextScaleForImageGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.generate([1, 2]).pixel_values, model.generate([1, 2]).pixel_values)
    assert isinstance(AutoModel.from_pretrained(tmp_path), NextScaleForImageGeneration)
    assert AutoConfig.from_pretrained(tmp_path).scales == [1, 2, 3, 4]


def test_a_seed_is_a_picture_and_leaves_chance_alone() -> None:
    model = small_model()
    state = torch.get_rng_state()
    one, same, other = (model.generate([0, 1], seed=seed).token_ids for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_top_1_is_the_most_likely() -> None:
    model = small_model()
    sample = model.generate([4], guidance=0, top_k=1, seed=9)
    assert torch.equal(model(torch.tensor([4]), sample.token_ids).logits.argmax(dim=2), sample.token_ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": [1, 3, 2, 4]}, "must rise"),
        ({"scales": [1, 2, 3]}, "to 4, the side of the finest map"),
        ({"downsampling": 3}, "power of two"),
        ({"image_size": 18}, "no multiple of downsampling"),
        ({"num_attention_heads": 3}, "no multiple of 3 heads"),
        ({"codebook_size": 0}, "the least is 1"),
        ({"class_names": ["one"]}, "1 class_names for 5 classes"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        small_config(**fields)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([5], {}, "classes are 0 to 4"),
        ([-1], {}, "classes are 0 to 4"),
        ([], {}, "list of whole numbers"),
        ([0.5], {}, "list of whole numbers"),
        ([0], {"temperature": 0}, "temperature"),
        ([0], {"guidance": -1}, "guidance"),
        ([0], {"top_k": 12}, "possible are 0"),
    ],
)
def test_bad_input_is_refused(labels: list, options: dict, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        small_model().generate(labels, **options)


def test_tokens_that_do_not_fit_are_refused() -> None:
    model = small_model()
    with pytest.raises(FoveateError, match=r"token_ids must be \(1, 30\)"):
        model(torch.tensor([0]), torch.zeros(1, 29, dtype=torch.long))
    with pytest.raises(FoveateError, match="0 to 10"):
        model.score(torch.tensor([0]), torch.full((1, 30), 11))
