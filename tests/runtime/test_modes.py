"""The ways in which people run models: generating, chatting, training, adapters, precision, pipelines, threads."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import foveate
from foveate import FoveateError, compat
from foveate.runtime import handle_of
from tests.checkpointing import checkpoint
from tests.families.zoo import END, IMAGE, Specimen, zoo
from tests.refusals import refused

ROWS = (((3, 4),), ((2, 3), (4, 3)))
CHATTING = ("llava", "qwen2.5-vl")


def inputs_of(specimen: Specimen, **options: Any) -> dict[str, Any]:
    return specimen.prompts(specimen.model(), ROWS, **options)


def written(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    # A model with random weights may write placeholders, which a pass without a cache would take for an image's.
    options["bad_words_ids"] = [[token] for token in range(100, 120)]
    tokens = model.generate(**inputs, max_new_tokens=5, pad_token_id=0, **options)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", CHATTING)
def test_every_way_to_generate(name: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), inputs_of(specimen)
    with foveate.compress(model, "divprune:3"):
        greedy = written(model, inputs, do_sample=False)
        assert written(model, inputs, do_sample=False, cache_implementation="static") == greedy
        assert written(model, inputs, num_beams=1, do_sample=False, **compat.cache_argument(DynamicCache())) == greedy
        beams = written(model, inputs, num_beams=3, do_sample=False)
        assert written(model, inputs, num_beams=3, do_sample=False, use_cache=False) == beams
        several = written(model, inputs, num_beams=3, num_return_sequences=2, do_sample=False)
        assert several[::2] == beams
        torch.manual_seed(3)
        sampled = written(model, inputs, do_sample=True, num_return_sequences=2)
        torch.manual_seed(3)
        assert written(model, inputs, do_sample=True, num_return_sequences=2) == sampled


@pytest.mark.parametrize("name", CHATTING)
def test_a_conversation_goes_on_with_a_new_image(name: str) -> None:
    """Two turns over one cache say what one pass over the whole conversation says."""
    specimen = zoo()[name]
    model = specimen.model()
    both = specimen.prompts(model, [((3, 4), (2, 3))])
    ids = both["input_ids"]
    images = (ids == IMAGE).nonzero()[:, 1]
    first_image = 12 if name != "llava" else 16
    cut = int(images[first_image - 1]) + (2 if name != "llava" else 1)  # just behind the first image
    with foveate.compress(model, "divprune:4"):
        cache = DynamicCache()
        turn = {"input_ids": ids[:, :cut], "attention_mask": both["attention_mask"][:, :cut]}
        turn |= _images(both, slice(0, 1), name, cut)
        model(**turn, **compat.cache_argument(cache))
        assert cache.get_seq_length() == cut  # the conversation is as long as ever
        assert cache.layers[0].keys.shape[2] == cut - first_image + 4  # the memory is not
        rest = {"input_ids": ids, "attention_mask": both["attention_mask"]}
        rest |= _images(both, slice(1, 2), name, ids.shape[1])
        if name == "llava":  # M-RoPE of a later turn is worked out from both images, which only a fresh pass can do
            continued = written(model, rest, do_sample=False, **compat.cache_argument(cache))
            whole = written(model, both, do_sample=False)
            assert continued == whole
        text = {"input_ids": torch.cat([ids[:, :cut], torch.tensor([[5, 6]])], dim=1)}
        text["attention_mask"] = torch.ones_like(text["input_ids"])
        if "mm_token_type_ids" in both:
            text["mm_token_type_ids"] = (text["input_ids"] == IMAGE).int()
        fresh = DynamicCache()
        model(**turn, **compat.cache_argument(fresh))
        continued = written(model, text, do_sample=False, **compat.cache_argument(fresh))
        assert continued == written(model, {**text, **_images(both, slice(0, 1), name, cut)} | text, do_sample=False)


def test_a_prompt_in_chunks_is_read_as_in_one_pass_or_refused() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), [((3, 4), (3, 4))])
    length = inputs["input_ids"].shape[1]
    for plan in ("divprune:3", "fastv:3@1", "cdpruner:3"):
        with foveate.compress(model, plan):
            expected = written(model, inputs, do_sample=False)
            if not compat.CHUNKS_READ_IMAGES:
                with pytest.raises(FoveateError, match="leaves out images and videos; leave it out"):
                    written(model, inputs, do_sample=False, prefill_chunk_size=length)
                continue
            assert written(model, inputs, do_sample=False, prefill_chunk_size=length) == expected
            if plan == "divprune:3" and compat.HAS_IMAGE_OUTPUTS:  # before, a chunk got all images
                assert written(model, inputs, do_sample=False, prefill_chunk_size=length - 2) == expected
                with pytest.raises(FoveateError, match="prefill_chunk_size divides them"):
                    written(model, inputs, do_sample=False, prefill_chunk_size=length // 2)
            elif plan != "divprune:3":
                with pytest.raises(FoveateError, match="needs the whole prompt in one pass"):
                    written(model, inputs, do_sample=False, prefill_chunk_size=length - 2)


def test_a_static_cache_that_was_emptied_begins_a_call() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
    with foveate.compress(model, "divprune:3") as handle, torch.no_grad():
        model(**inputs, **compat.cache_argument(cache))
        assert len(handle.report().images) == 3
        cache.reset()
        model(input_ids=torch.tensor([[5, 6], [7, 8]]), **compat.cache_argument(cache))
        assert handle.report().images == ()


def _images(inputs: dict[str, Any], which: slice, name: str, length: int) -> dict[str, Any]:
    if name == "llava":
        return {"pixel_values": inputs["pixel_values"][which]}
    grids = inputs["image_grid_thw"]
    sizes = grids.prod(dim=1).tolist()
    parts = list(inputs["pixel_values"].split(sizes))[which]
    types = inputs["mm_token_type_ids"][:, :length]
    return {"pixel_values": torch.cat(parts), "image_grid_thw": grids[which], "mm_token_type_ids": types}


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "glm-4v", "glm-4.6v"])
def test_later_turns_with_positions_of_several_axes(name: str) -> None:
    """A new image over a cache needs the grids of all images: `generate` works positions out from the whole."""
    specimen = zoo()[name]
    model = specimen.model()
    both = specimen.prompts(model, [((3, 4), (2, 3))])
    ids, grids = both["input_ids"], both["image_grid_thw"]
    cut = int((ids == IMAGE).nonzero()[11, 1]) + 2  # just behind the first image
    old, new = _images(both, slice(0, 1), name, cut), _images(both, slice(1, 2), name, ids.shape[1])
    first = {"input_ids": ids[:, :cut], "attention_mask": both["attention_mask"][:, :cut], **old}

    def begun() -> DynamicCache:
        cache = DynamicCache(config=model.config.get_text_config())
        model(**first, **compat.cache_argument(cache))
        return cache

    def continued() -> list[list[int]]:
        return written(model, {**both, **new}, do_sample=False, **compat.cache_argument(begun()))

    with torch.no_grad():
        if compat.PLACES_IMAGES_AFTER_CACHE:
            with pytest.raises(StopIteration):  # so does the model without a plan
                continued()
            with foveate.compress(model, "divprune:4"):
                whole = written(model, both, do_sample=False)
                encoded = model.model.get_image_features(new["pixel_values"], new["image_grid_thw"], return_dict=True)
                rest = {key: value for key, value in both.items() if key != "pixel_values"}
                rest |= {"image_grid_thw": grids, "mm_encoder_outputs": {"image": encoded}}
                assert written(model, rest, do_sample=False, **compat.cache_argument(begun())) == whole
                with pytest.raises(StopIteration):
                    continued()
        else:  # without a plan, the new image gets the positions of text
            continued()
            index: Any = model.model.get_rope_index
            places = index(ids, both["mm_token_type_ids"], image_grid_thw=grids, attention_mask=both["attention_mask"])
            with foveate.compress(model, "divprune:4"):
                with pytest.raises(FoveateError, match="a new image after a cache the positions of text"):
                    continued()
                whole = written(model, both, do_sample=False)
                rest = {**both, **new, "position_ids": places[0]}
                assert written(model, rest, do_sample=False, **compat.cache_argument(begun())) == whole
    with torch.no_grad(), foveate.compress(model, "divprune:4"):
        text = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, cut + 2, dtype=torch.int64)}
        with pytest.raises(FoveateError, match=f"{cut + 2} positions for 2 new tokens"):
            model(**text, **compat.cache_argument(begun()))
        model(input_ids=text["input_ids"], **compat.cache_argument(begun()))


def test_caches_can_be_copied_cropped_and_repeated() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS[:1])
    with torch.no_grad(), foveate.compress(model, "divprune:3"):
        cache = DynamicCache()
        model(**inputs, **compat.cache_argument(cache))
        length = cache.get_seq_length()
        twin = copy.deepcopy(cache)
        twin.crop(length - 2)
        assert (twin.get_seq_length(), cache.get_seq_length()) == (length - 2, length)
        with pytest.raises(FoveateError, match="within the text after the last image"):
            twin.crop(4)
        more = torch.tensor([[7, 8]])
        mask = torch.ones(1, length + 2, dtype=torch.int64)
        one = model(input_ids=more, attention_mask=mask, **compat.cache_argument(copy.deepcopy(cache))).logits
        cache.batch_repeat_interleave(2)
        two = model(
            input_ids=more.repeat(2, 1), attention_mask=mask.repeat(2, 1), **compat.cache_argument(cache)
        ).logits
        torch.testing.assert_close(two, one.repeat(2, 1, 1))
        cache.reset()
        assert cache.get_seq_length() == 0
        assert type(cache) is DynamicCache


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_training_through_a_plan_reaches_every_part(name: str) -> None:
    specimen = zoo()[name]
    model = copy.deepcopy(specimen.model()).train()
    inputs = inputs_of(specimen)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] >= END), -100)
    losses = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint(model)
        model.zero_grad()
        with foveate.compress(model, "pool:4"):
            loss = model(**inputs, labels=labels, use_cache=False).loss
            loss.backward()
        losses.append(loss.item())
        parameters = dict(model.named_parameters())
        touched = [n for n, p in parameters.items() if p.grad is not None and float(p.grad.abs().sum()) > 0]
        for part in ("lm_head", "language_model.layers.0", "layers.0" if name == "llava" else "visual.blocks.0"):
            assert any(part in n for n in touched), part
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft")
    specimen = zoo()["llava"]
    model = copy.deepcopy(specimen.model())
    inputs = inputs_of(specimen)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    )
    with foveate.compress(adapted, "divprune:3") as handle:
        tokens = written(adapted, inputs, do_sample=False)
        assert handle.report().tokens_kept == 9
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= END, -100)
        adapted(**inputs, labels=labels).loss.backward()
    assert any(p.grad is not None for n, p in adapted.named_parameters() if "lora" in n)
    with foveate.compress(adapted.merge_and_unload(), "divprune:3"):
        assert written(model, inputs, do_sample=False) == tokens


def test_a_quantised_text_part() -> None:
    torchao = pytest.importorskip("torchao")
    specimen = zoo()["llava"]
    model = copy.deepcopy(specimen.model())
    torchao.quantize_(model.model.language_model, torchao.quantization.Int8WeightOnlyConfig())
    inputs = inputs_of(specimen)
    with foveate.compress(model, "divprune:3") as handle:
        assert written(model, inputs, do_sample=False) == written(model, inputs, do_sample=False, use_cache=False)
        assert handle.report().tokens_kept == 9


@pytest.mark.parametrize("name", sorted(zoo()))
def test_half_precision(name: str) -> None:
    specimen = zoo()[name]
    model = copy.deepcopy(specimen.model()).to(torch.bfloat16)
    inputs = inputs_of(specimen)
    inputs = {k: v.to(torch.bfloat16) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad(), foveate.compress(model, "pool:3"):
        out = model(**inputs).logits
    assert out.dtype == torch.bfloat16
    assert bool(out[:, -3:].isfinite().all())


def test_a_device_map() -> None:
    accelerate = pytest.importorskip("accelerate")
    specimen = zoo()["llava"]
    model = copy.deepcopy(specimen.model())
    inputs = inputs_of(specimen)
    with foveate.compress(model, "divprune:3"):
        expected = written(model, inputs, do_sample=False)
    model = accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    with foveate.compress(model, "divprune:3"):
        assert written(model, inputs, do_sample=False) == expected
    assert written(model, inputs, do_sample=False) != []


def test_threads_have_reports_of_their_own() -> None:
    specimen = zoo()["llava"]
    model = specimen.model()
    with foveate.compress(model, "divprune:3") as handle:

        def run(images: int) -> tuple[int, int]:
            inputs = specimen.prompts(model, [((1, 1),) * images], seed=images)
            for _ in range(3):
                with torch.no_grad():
                    model(**inputs)
            return len(handle.report().images), images

        with ThreadPoolExecutor(4) as pool:
            assert all(found == images for found, images in pool.map(run, (1, 2, 3, 4)))
        assert len(handle.report(everything=True).images) == 3 * (1 + 2 + 3 + 4)


def test_labels_of_a_context_go_on_after_a_call_with_labels() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), [((3, 4),)])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= 100, -100)
    with foveate.compress(model, "fastv:3@1") as handle, torch.no_grad(), handle.with_labels(labels):
        expected = model.model(**inputs).last_hidden_state
        model(**inputs, labels=inputs["input_ids"])
        assert torch.equal(model.model(**inputs).last_hidden_state, expected)


def test_features_are_kept_of_the_last_call_alone() -> None:
    """A handle that answers for days reports on 1,024 images, and would keep the tokens of all of them."""
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    with foveate.compress(model, "pool:4") as handle, torch.no_grad():
        for _ in range(2):
            model(**inputs)
        last, everything = handle.report().images, handle.report(everything=True).images
    assert [image.selection.features.shape[0] for image in last] == [4] * 3
    assert len(everything) == 6
    for image, other in zip(last * 2, everything, strict=True):
        assert other.selection.features is None
        assert torch.equal(image.selection.assignment, other.selection.assignment)
        assert image.as_json().keys() == other.as_json().keys()


def test_one_plan_at_a_time() -> None:
    model = zoo()["llava"].model()
    with foveate.compress(model, "divprune:3") as handle:
        assert handle_of(model) is handle
        with refused("attached-already"):
            foveate.compress(model, "random:3")
        handle.restore()
        handle.restore()
    assert handle_of(model) is None
    with foveate.compress(model, "random:3") as handle, pytest.raises(RuntimeError, match="mine"):
        raise RuntimeError("mine")
    handle.restore()
    assert handle_of(model) is None


def test_chains_obey_both_budgets() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    with torch.no_grad(), foveate.compress(model, "fastervlm:8 + pool:50%") as handle:
        model(**inputs)
        for image in handle.report().images:
            assert [(step.tokens_in, step.tokens_kept) for step in image.steps] == [(16, 8), (8, 4)]
            image.selection.check(16)
            weights = image.selection.weights
            assert weights is not None
            torch.testing.assert_close(weights.sum(), torch.tensor(4.0))


def test_models_that_cannot_be_compressed_are_refused() -> None:
    text = LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with refused("needs-known-family", "model types that it can: .*llava"):
        foveate.compress(text, "divprune:3")
    with pytest.raises(FoveateError, match="a model of transformers can be compressed, not a str"):
        foveate.compress("llava", "divprune:3")


def test_images_without_their_placeholders_are_refused() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    with foveate.compress(model, "divprune:3"), pytest.raises((FoveateError, ValueError)):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:2]})
