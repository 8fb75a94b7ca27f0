"""Caches that are shorter than their conversation: who may go on with them, and in which ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import foveate
from foveate import FoveateError, compat
from foveate.families import family_of
from foveate.kv_cache.pruned_cache import state_of
from tests.families.zoo import Specimen, zoo
from tests.runtime.matrix import inside_pairs, raster_pairs

REFUSED = "this cache was filled under"
ONE = (((3, 4),),)
#: A plan before the language model on all models, and those inside it where layers can be shortened.
PAIRS = [*((name, "divprune:3") for name in sorted(zoo())), *inside_pairs(), *raster_pairs()]


def longer(inputs: dict[str, Any], count: int) -> dict[str, Any]:
    """The arguments of a pass over `count` tokens more than `inputs`, with positions where models need them."""
    ids = torch.arange(7, 7 + count)[None].expand(len(inputs["input_ids"]), -1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], dim=1)
    return {"input_ids": ids, "attention_mask": mask}


def positions(specimen: Specimen, inputs: dict[str, Any], count: int) -> dict[str, Any]:
    """Positions of the next tokens where they have several axes, which models work out from whole conversations."""
    core = family_of(specimen.model()).core(specimen.model())
    if not hasattr(core, "get_rope_index"):
        return {}
    length = inputs["input_ids"].shape[1]
    return {"position_ids": torch.arange(length, length + count).expand(3, len(inputs["input_ids"]), -1)}


def read(model: Any, inputs: dict[str, Any], cache: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **compat.cache_argument(cache), use_cache=True).logits


def empty(specimen: Specimen) -> DynamicCache:
    return DynamicCache(config=specimen.model().config.get_text_config())


@pytest.mark.parametrize(("name", "plan"), PAIRS)
def test_a_shortened_cache_goes_on_under_its_plan_alone(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    more = {**longer(inputs, 3), **positions(specimen, inputs, 3)}
    cache, again = empty(specimen), empty(specimen)
    with foveate.compress(model, plan):
        read(model, inputs, cache)
        read(model, inputs, again)
        twin = copy.deepcopy(cache)
        expected = read(model, more, again)
    kept = state_of(cache)
    if kept is None or kept.complete:  # nothing was left out: an ordinary cache, also with layers in few bits
        torch.testing.assert_close(read(model, more, copy.deepcopy(cache)), expected)
    else:
        for held in (cache, twin):
            with pytest.raises(FoveateError, match=REFUSED):
                read(model, more, held)
        with foveate.compress(model, "random:2"), pytest.raises(FoveateError, match=REFUSED):
            read(model, more, cache)
    with foveate.compress(model, plan):
        torch.testing.assert_close(read(model, more, twin), expected)
    cache.reset()
    assert type(cache) is DynamicCache
    ordinary = read(model, inputs, empty(specimen))
    torch.testing.assert_close(read(model, inputs, cache), ordinary)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3"])
def test_another_model_and_generate_are_refused_a_shortened_cache(name: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    other = copy.deepcopy(model)
    more, cache = {**longer(inputs, 3), **positions(specimen, inputs, 3)}, empty(specimen)
    with foveate.compress(model, "divprune:3"):
        read(model, inputs, cache)
        with pytest.raises(FoveateError, match=REFUSED):
            read(other, more, cache)
        with foveate.compress(other, "divprune:3"), pytest.raises(FoveateError, match=REFUSED):
            read(other, more, cache)
        with pytest.raises(FoveateError, match=REFUSED):
            read(model.model.language_model, {"input_ids": more["input_ids"]}, cache)
    ids = torch.cat([inputs["input_ids"], more["input_ids"]], dim=1)
    with pytest.raises(FoveateError, match=REFUSED):
        model.generate(ids, max_new_tokens=2, **compat.cache_argument(cache))


@pytest.mark.parametrize(("name", "plan"), PAIRS)
def test_a_cache_that_was_filled_without_a_plan_goes_on_under_one(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    more = {**longer(inputs, 3), **positions(specimen, inputs, 3)}
    cache, other = empty(specimen), empty(specimen)
    read(model, inputs, cache)
    read(model, inputs, other)
    expected = read(model, more, other)
    with foveate.compress(model, plan):
        torch.testing.assert_close(read(model, more, cache), expected)


def test_a_pass_that_failed_half_way_leaves_no_cache_to_go_on_with() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    last = model.model.language_model.layers[-1].mlp

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    for plan in ("divprune:3", "fastv:3@1", "zipvl@1", "cmai@1"):
        cache = empty(specimen)
        with foveate.compress(model, plan):
            hook = last.register_forward_pre_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                read(model, inputs, cache)
            hook.remove()
            with pytest.raises(FoveateError, match="a pass was interrupted"):
                read(model, longer(inputs, 1), cache)
        with pytest.raises(FoveateError, match=REFUSED):
            read(model, longer(inputs, 1), cache)
        cache.reset()
        read(model, inputs, cache)


@pytest.mark.parametrize("plan", ["divprune:100%", "fastv:100%@1"])
def test_a_plan_that_left_nothing_out_leaves_an_ordinary_cache(plan: str) -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    cache, other = empty(specimen), empty(specimen)
    with foveate.compress(model, plan):
        read(model, inputs, cache)
    read(model, inputs, other)
    torch.testing.assert_close(read(model, longer(inputs, 3), cache), read(model, longer(inputs, 3), other))
    assert type(cache) is DynamicCache


@pytest.mark.parametrize("name", sorted(zoo()))
def test_training_with_gradient_checkpointing_leaves_no_marks(name: str) -> None:
    specimen = zoo()[name]
    model = copy.deepcopy(specimen.model()).train()
    inputs, cache = specimen.prompts(model, ONE), empty(specimen)
    model.gradient_checkpointing_enable()
    with foveate.compress(model, "divprune:3"):
        output = model(**inputs, **compat.cache_argument(cache), use_cache=True)
        output.logits.sum().backward()
    if not cache.get_seq_length():
        assert type(cache) is DynamicCache


def written(model: Any, inputs: dict[str, Any], **options: Any) -> list[int]:
    options["bad_words_ids"] = [[token] for token in range(100, 120)]
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0, **options)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("name", "plan"), PAIRS)
def test_assisted_decoding_writes_what_greedy_decoding_writes(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model, images = specimen.model(), specimen.prompts(specimen.model(), ONE)
    other = copy.deepcopy(model)
    with torch.no_grad():  # right at times
        other.get_output_embeddings().weight.add_(0.1 * torch.randn(1, generator=torch.Generator().manual_seed(0)))
    ways = {"prompt lookup": {"prompt_lookup_num_tokens": 3}, "assistant": {"assistant_model": other}}
    if name in ("llava", "qwen2.5-vl"):
        ways |= {"itself": {"assistant_model": model}}
    refusals: dict[str, str] = {}
    text = {key: value for key, value in images.items() if key in ("input_ids", "attention_mask")}
    text = {key: torch.cat([value[:, -3:]] * 3, dim=1) for key, value in text.items()}
    for inputs in (images, text):
        for way, options in ways.items():
            try:  # without a plan
                written(model, inputs, **options)
            except (ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                refusals[way] = str(error)  # such as layers with states, which cannot be cropped
                continue
            with foveate.compress(model, plan):
                assert written(model, inputs, **options) == written(model, inputs), way
    assert not refusals or all("not supported with stateful models" in words for words in refusals.values())


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3"])
def test_an_assistant_may_have_a_plan_of_its_own(name: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    other = copy.deepcopy(model)
    expected = written(model, inputs)
    with foveate.compress(other, "random:3"):
        written(other, inputs)  # so that it encoded images of its own
        assert written(model, inputs, assistant_model=other) == expected
        with foveate.compress(model, "divprune:3"):
            assert written(model, inputs, assistant_model=other) == written(model, inputs)


def test_images_that_another_model_encoded_are_refused() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    other, pixels = copy.deepcopy(model), specimen.prompts(model, ONE, seed=1)["pixel_values"]
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with foveate.compress(other, "divprune:3"), torch.no_grad():
        of_other = other.model.get_image_features(inputs["pixel_values"], return_dict=True)
        with foveate.compress(model, "divprune:3"):
            own = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
            moved = type(own)(**own)  # as hooks that move outputs to a device make them
            expected = model(**inputs).logits
            for output in (own, moved):
                torch.testing.assert_close(model(**rest, mm_encoder_outputs={"image": output}).logits, expected)
            model.model.get_image_features(pixels, return_dict=True)
            for output in (of_other, type(of_other)(**of_other)):
                with pytest.raises(FoveateError, match="encoded by another model"):
                    model(**rest, mm_encoder_outputs={"image": output})


def test_crop_takes_away_as_many_tokens_as_it_is_told() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    caches: list[Any] = [empty(specimen)]
    if compat.CROPS_STATIC_CACHES:
        caches.append(StaticCache(model.config.get_text_config(), max_cache_len=64))
    for cache in caches:
        with foveate.compress(model, "divprune:3"):
            read(model, inputs, cache)
            length = int(cache.get_seq_length())
            first = read(model, longer(inputs, 3), cache)
            cache.crop(0)
            assert cache.get_seq_length() == length + 3
            cache.crop(-2)
            assert cache.get_seq_length() == length + 1
            rest = {name: value[:, 1:] if name == "input_ids" else value for name, value in longer(inputs, 3).items()}
            torch.testing.assert_close(read(model, rest, cache), first[:, 1:])
            with pytest.raises(FoveateError, match="within the text after the last image"):
                cache.crop(-length)


@pytest.mark.parametrize("plan", ["zipvl(residual=2)@1", "zipvl@1", "cmai@1", "corematching@1"])
def test_tokens_read_at_once_under_a_draft_are_those_read_one_by_one(plan: str) -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    with foveate.compress(model, plan):
        greedy = written(model, inputs)
        assert written(model, inputs, assistant_model=model) == greedy
        assert written(model, inputs, assistant_model=model, num_assistant_tokens=5) == greedy


@pytest.mark.parametrize(
    ("name", "plan"),
    [("qwen2.5-vl", "fourier:3"), ("qwen2.5-vl", "divprune:3"), ("gemma3", "divprune:3"), ("paligemma", "fastv:3@1")],
)
def test_a_turn_that_failed_before_it_wrote_is_read_again(name: str, plan: str) -> None:
    """What the turn adds to the state of the cache (token types, shifts of positions) is added once."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    length = inputs["input_ids"].shape[1]
    turn = {**inputs, "attention_mask": torch.cat([inputs["attention_mask"]] * 2, dim=1)}
    if "image_grid_thw" in inputs:
        types = torch.cat([inputs["mm_token_type_ids"]] * 2, dim=1)
        both = torch.cat([inputs["input_ids"]] * 2, dim=1), torch.cat([inputs["image_grid_thw"]] * 2)
        turn["position_ids"] = model.model.get_rope_index(
            both[0], image_grid_thw=both[1], attention_mask=turn["attention_mask"], mm_token_type_ids=types
        )[0][..., length:]

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    cache, again = empty(specimen), empty(specimen)
    with foveate.compress(model, plan):
        for one in (cache, again):
            read(model, inputs, one)
        expected = read(model, turn, cache)
        hook = model.model.language_model.layers[0].input_layernorm.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            read(model, turn, again)
        hook.remove()
        assert torch.equal(read(model, turn, again), expected)
