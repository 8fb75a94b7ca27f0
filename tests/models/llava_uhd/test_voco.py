"""VoCo tokens: the mask against a table by hand, caches without images against passes with the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate import FoveateError, compat
from foveate import cost as cost_of
from foveate.cost import flops
from foveate.image_kv_cache import ImageMemory
from foveate.models.llava_uhd import LlavaUHDForConditionalGeneration
from foveate.models.llava_uhd.voco import VOCO_TOKEN, add_voco_tokens, closed_images, voco_mask

#: s a system prompt, i an image token, v a VoCo token, t text; what the query of a row sees of the columns.
LETTERS = "siivtivt"
TABLE = """
    s       | x.......
    i       | xx......
    i       | xxx.....
    v       | xxxx....
    t       | x..xx...
    i       | x..xxx..
    v       | x..xxxx.
    t       | x..xx.xx
"""


def rows_of(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.strip().splitlines()]


def image_of(letters: str) -> torch.Tensor:
    return torch.tensor([[letter == "i" for letter in letters]])


def shown(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if allowed else "." for allowed in row) for row in mask.tolist()]


def test_the_mask_is_the_table() -> None:
    mask = voco_mask(image_of(LETTERS), 1, torch.ones(1, len(LETTERS)))
    assert mask.shape == (1, 1, 8, 8)
    assert mask.dtype == torch.bool
    assert shown(mask[0, 0]) == rows_of(TABLE)
    assert closed_images(image_of(LETTERS), 1).tolist() == [[0, 0, 0, 0, 1, 1, 1, 2]]


def test_two_voco_tokens_both_see_the_image_and_a_past_is_seen_by_all() -> None:
    """Two columns of a cache, the first of them padding."""
    key_mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1]])
    mask = voco_mask(image_of("iivvt"), 2, key_mask)
    assert shown(mask[0, 0]) == [".xx....", ".xxx...", ".xxxx..", ".xxxxx.", ".x..xxx"]


def test_padding_sees_itself_alone() -> None:
    mask = voco_mask(image_of("ppivt"), 1, torch.tensor([[0, 0, 1, 1, 1]]))
    assert shown(mask[0, 0]) == ["x....", ".x...", "..x..", "..xx.", "...xx"]


@pytest.fixture(params=[1, 3])
def pair(request, fresh, processor):
    """A model with VoCo tokens and its processor."""
    processor = copy.deepcopy(processor)
    add_voco_tokens(fresh, processor, request.param)
    return fresh, processor


def prompts(processor, pictures):
    return processor(
        images=[[pictures[0], pictures[1]], [pictures[2]], []],
        text=["Look: <image> and <image>: compare", "<image>?", "no image at all"],
        return_tensors="pt",
        padding=True,
    )


def one(processor, picture):
    return processor(images=[picture], text="Look: <image> What?", return_tensors="pt")


def test_the_processor_writes_them_after_every_image(pair, pictures):
    model, processor = pair
    count = model.config.num_voco_tokens
    ids = one(processor, pictures[1])["input_ids"][0].tolist()
    first = ids.index(model.config.image_token_id)
    assert ids[first : first + 4 + count] == [model.config.image_token_id] * 4 + [model.config.voco_token_id] * count
    assert processor.tokenizer.convert_tokens_to_ids(VOCO_TOKEN) == model.config.voco_token_id == 260


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_text_sees_images_through_voco_tokens_alone(pair, pictures, implementation):
    """Every layer's keys and values of image tokens are replaced by noise after the VoCo tokens were written."""
    model, processor = pair
    model.set_attn_implementation(implementation)
    inputs = one(processor, pictures[0])
    ids = inputs["input_ids"]
    split = int((ids[0] == model.config.voco_token_id).nonzero()[-1]) + 1
    with torch.no_grad():
        whole = model(**inputs).logits
        cache = DynamicCache(config=model.config.text_config)
        first = {**inputs, "input_ids": ids[:, :split], "attention_mask": inputs["attention_mask"][:, :split]}
        before = model(**first, **compat.cache_argument(cache)).logits
        held = [layer.keys.shape[2] for layer in cache.layers]
        after = model(
            input_ids=ids[:, split:], attention_mask=inputs["attention_mask"], **compat.cache_argument(cache)
        ).logits
    images = int((ids == model.config.image_token_id).sum())
    assert held == [split - images] * len(held)
    assert cache.get_seq_length() == ids.shape[1]  # for whom the conversation is as long as it is
    torch.testing.assert_close(torch.cat([before, after], dim=1), whole, atol=1e-4, rtol=1e-4)


def test_the_mask_hides_the_image_and_nothing_else(pair, pictures):
    """With VoCo tokens that hold nothing of it, another image changes no answer; the system prompt does."""
    model, processor = pair
    layers = model.model.language_model.layers
    first, second = one(processor, pictures[0]), one(processor, pictures[0].transpose(0))
    voco = first["input_ids"] == model.config.voco_token_id
    frozen: list[torch.Tensor] = []

    def freeze(module, args, output):
        """The VoCo tokens' hidden states after the first layer are those of the first image."""
        if len(frozen) < len(layers):
            frozen.append(output[voco].clone())
        output = output.clone()
        output[voco] = frozen[layers_seen[0] % len(layers)]
        layers_seen[0] += 1
        return output

    layers_seen = [0]
    hooks = [layer.register_forward_hook(freeze) for layer in layers]
    try:
        with torch.no_grad():
            expected, found = model(**first).logits, model(**second).logits
            other = model(**{**first, "input_ids": first["input_ids"].index_fill(1, torch.tensor([0]), 66)}).logits
    finally:
        for hook in hooks:
            hook.remove()
    text = slice(int(voco[0].nonzero()[-1]) + 1, None)
    torch.testing.assert_close(found[:, text], expected[:, text], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:, :3], other[:, :3])
    assert not torch.allclose(other[:, text], expected[:, text])


def test_images_cost_operations_and_no_cache(pair, pictures):
    model, processor = pair
    inputs = one(processor, pictures[0])
    shape = cost_of.shape_of(model.config)
    size = pictures[0].size
    processed = cost_of.processed_image(model.config, *size, processor.image_processor)
    text = inputs["input_ids"].shape[1] - processed.tokens
    cost = cost_of.cost(shape, cost_of.follow(None, shape, processed), text)
    cache = DynamicCache(config=model.config.text_config)
    with torch.inference_mode():
        model.requires_grad_(False)
        run = {**inputs, **compat.cache_argument(cache), "logits_to_keep": 1}
        assert flops.count(lambda: model(**run)) == cost.total
        step = {"input_ids": torch.tensor([[65]]), **compat.cache_argument(cache)}
        held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
        assert flops.count(lambda: model(**step)) == cost.decode
    assert (cost.cached, cost.cached_image) == (held, 0)


def test_a_batch_is_its_prompts_and_a_cache_changes_nothing(pair, pictures):
    model, processor = pair
    inputs = prompts(processor, pictures)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "suppress_tokens": [259]}
    together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    without = model.generate(**inputs, **options, use_cache=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(together, without)
    alone = processor(images=[pictures[2]], text="<image>?", return_tensors="pt")
    assert torch.equal(model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :], together[1])
    beams = model.generate(**inputs, **options, num_beams=2)
    assert torch.equal(beams, model.generate(**inputs, **options, num_beams=2, use_cache=False))


def test_a_conversation_goes_on_with_another_image(pair, pictures):
    model, processor = pair
    text = ["<image>?", " <image>!"]
    first = processor(images=[pictures[0]], text=text[0], return_tensors="pt")
    second = processor(images=[pictures[1]], text=text[1], return_tensors="pt")
    both = processor(images=pictures[:2], text="".join(text), return_tensors="pt")
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**first, **compat.cache_argument(cache))
        found = model(**{**second, "attention_mask": both["attention_mask"]}, **compat.cache_argument(cache)).logits
        expected = model(**both).logits
    torch.testing.assert_close(found, expected[:, -found.shape[1] :], atol=1e-4, rtol=1e-4)
    images = int((both["input_ids"] == model.config.image_token_id).sum())
    assert {layer.keys.shape[2] for layer in cache.layers} == {both["input_ids"].shape[1] - images}


def test_one_image_is_read_once_for_all_questions(pair, pictures):
    model, processor = pair
    passes = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    try:
        memory = ImageMemory(model, processor, pictures[3])
        questions = ("What is it?", "Which colour?", "What is it?")
        answers = [memory.ask(question, 8) for question in questions]
        assert len(passes) == 1
    finally:
        hook.remove()
    assert answers == [foveate.ask(pictures[3], q, (model, processor), max_new_tokens=8).text for q in questions]
    images = 12
    assert set(memory.lengths) == {memory.tokens - images}
    entry = 2 * 2 * 8 * 4  # keys and values, heads, their width, bytes
    assert memory.nbytes == len(memory.lengths) * (memory.tokens - images) * entry


def test_a_saved_model_reads_through_them_again(pair, pictures, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, its = foveate.load(tmp_path)
    assert isinstance(loaded, LlavaUHDForConditionalGeneration)
    assert its.num_voco_tokens == loaded.config.num_voco_tokens == model.config.num_voco_tokens
    inputs = one(processor, pictures[0])
    assert torch.equal(one(its, pictures[0])["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_gradients_reach_the_image_through_voco_tokens(pair, pictures):
    model, processor = pair
    inputs = one(processor, pictures[0])
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    model.train()
    model(**inputs, labels=labels).loss.backward()
    assert float(model.model.multi_modal_projector.linear_1.weight.grad.abs().sum()) > 0
    assert float(model.get_input_embeddings().weight.grad[model.config.voco_token_id].abs().sum()) > 0


def test_what_cannot_be_is_refused(pair, pictures, fresh, processor):
    model, its = pair
    with pytest.raises(FoveateError, match="has an image without them: let the processor write"):
        model(**processor(images=[pictures[0]], text="<image>?", return_tensors="pt"))
    with pytest.raises(
        FoveateError, match="reads images through . VoCo tokens each, and 'divprune:2' cannot be attached to it"
    ):
        foveate.compress(model, "divprune:2")
    with pytest.raises(FoveateError, match="a cache that grows"):
        model.generate(**one(its, pictures[0]), max_new_tokens=2, cache_implementation="static")
    with pytest.raises(FoveateError, match="1 VoCo token or more, not 0"):
        add_voco_tokens(model, its, 0)
    with pytest.raises(FoveateError, match="the question is empty"):
        ImageMemory(model, its, pictures[0]).ask(" ")


def test_a_model_without_them_has_no_memory(qwen2, processor, pictures):
    with pytest.raises(FoveateError, match="no VoCo tokens to remember"):
        ImageMemory(qwen2, processor, pictures[0])


def test_another_way_of_reading_is_refused_a_cache_without_images(pair, pictures) -> None:
    """What was read through VoCo tokens holds no image: nobody else can go on with it."""
    model, processor = pair
    inputs, cache = prompts(processor, pictures), DynamicCache()
    word = {"input_ids": inputs["input_ids"][:, -1:]}
    with torch.no_grad():
        model(**inputs, **compat.cache_argument(cache))
        model(**word, **compat.cache_argument(cache))
        for other in (copy.deepcopy(model), model.model.language_model):
            with pytest.raises(FoveateError, match="was filled under . VoCo tokens an image, which removed tokens"):
                other(**word, **compat.cache_argument(cache))
