"""`generate()` and the pipeline."""

import copy

import pytest
import torch
from transformers import pipeline

from foveate import compat
from foveate.core.errors import FoveateError

IMAGE = 259


@pytest.fixture
def tower_calls():
    """`tower_calls(model)` is a list that grows by one whenever the model's vision tower runs."""
    handles = []

    def watch(model):
        calls = []
        handles.append(model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1)))
        return calls

    yield watch
    for handle in handles:
        handle.remove()


def generate(model, inputs, **options):
    """New tokens only, greedy, never stopped by an end token."""
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def test_cache_changes_nothing_and_images_are_encoded_once(model, batch, tower_calls):
    calls = tower_calls(model)
    cached = generate(model, batch)
    assert len(calls) == 1
    assert torch.equal(cached, generate(model, batch, use_cache=False))
    assert len(set(cached.flatten().tolist())) > 3  # the models have opinions


def test_first_tokens_are_the_argmax_of_the_logits(model, singles):
    """A loop without cache, written out."""
    for inputs in singles:
        ids, others = inputs["input_ids"], {n: inputs[n] for n in ("pixel_values", "grid_hws") if n in inputs}
        for _ in range(4):
            with torch.no_grad():
                following = model(input_ids=ids, **others).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
        assert torch.equal(ids[:, inputs["input_ids"].shape[1] :], generate(model, inputs, max_new_tokens=4))


def test_left_padded_batch_equals_single_prompts(model, batch, singles):
    together = generate(model, batch)
    for row, inputs in zip(together, singles, strict=True):
        assert torch.equal(row, generate(model, inputs)[0])


def test_beams_of_a_batch_equal_beams_of_single_prompts(model, batch, singles, tower_calls):
    calls = tower_calls(model)
    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    together = generate(model, batch, **beams)
    assert len(calls) == 1
    assert together.shape == (6, 8)
    for row, inputs in enumerate(singles):
        assert torch.equal(together[2 * row : 2 * row + 2], generate(model, inputs, **beams))


def test_returned_sequences_see_the_images_of_their_prompt(model, batch):
    greedy = generate(model, batch)
    sampled = generate(model, batch, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(sampled, greedy.repeat_interleave(3, dim=0))


def test_other_decoding_modes_agree_with_greedy(qwen2, singles):
    greedy = generate(qwen2, singles[0])
    assert torch.equal(generate(qwen2, singles[0], prompt_lookup_num_tokens=2), greedy)
    assert torch.equal(generate(qwen2, singles[0], cache_implementation="static"), greedy)


def test_a_conversation_goes_on_from_its_cache(qwen2, processor, pictures):
    """The second turn brings its own image; the first turn's is not encoded again."""
    first = processor(images=pictures[0], text="<image>?", return_tensors="pt")
    answered = qwen2.generate(
        **first, max_new_tokens=4, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    turn = processor(images=pictures[1], text=" and <image>?", return_tensors="pt")
    ids = torch.cat([answered.sequences, turn["input_ids"]], dim=1)
    images = {name: torch.cat([first[name], turn[name]]) for name in ("pixel_values", "grid_hws")}
    whole = generate(qwen2, {"input_ids": ids, **images})
    going_on = {"input_ids": ids, "pixel_values": turn["pixel_values"], "grid_hws": turn["grid_hws"]}
    assert torch.equal(generate(qwen2, going_on, **compat.cache_argument(compat.cache_of(answered))), whole)


def test_embeddings_in_place_of_ids(qwen2, singles):
    inputs = singles[0]
    embeds = qwen2.get_input_embeddings()(inputs["input_ids"])
    from_embeds = qwen2.generate(
        inputs_embeds=embeds,
        pixel_values=inputs["pixel_values"],
        grid_hws=inputs["grid_hws"],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(from_embeds, generate(qwen2, inputs))


def test_packed_images_are_repeated_prompt_by_prompt(qwen2):
    """Where `generate` expands raw images: [A B | C | no image] for two beams is [A B A B | C C]."""
    grids = torch.tensor([[4, 8], [8, 4], [4, 4]])
    patches = torch.arange(80.0)[:, None, None, None]
    ids = torch.tensor([[IMAGE] * 4, [1, 1, 1, IMAGE], [1, 1, 1, 1]])
    expanded, others = qwen2._expand_inputs_for_generation(2, input_ids=ids, pixel_values=patches, grid_hws=grids)
    assert torch.equal(expanded, ids.repeat_interleave(2, dim=0))
    assert others["grid_hws"].tolist() == [[4, 8], [8, 4], [4, 8], [8, 4], [4, 4], [4, 4]]
    order = [*range(64), *range(64), *range(64, 80), *range(64, 80)]
    assert others["pixel_values"].flatten().tolist() == order
    embeds = qwen2.get_input_embeddings()(ids)
    _, from_embeds = qwen2._expand_inputs_for_generation(
        2, input_ids=ids[:, :0], inputs_embeds=embeds, pixel_values=patches, grid_hws=grids
    )
    assert torch.equal(from_embeds["pixel_values"], others["pixel_values"])

    with pytest.raises(FoveateError, match="whole images"):
        qwen2._expand_inputs_for_generation(2, input_ids=ids[:, 1:], pixel_values=patches, grid_hws=grids)
    with pytest.raises(FoveateError, match="1 images have no placeholders"):
        qwen2._expand_inputs_for_generation(2, input_ids=ids[:1], pixel_values=patches, grid_hws=grids)


@pytest.fixture
def answering(qwen2, processor):
    return pipeline("image-text-to-text", model=copy.deepcopy(qwen2), processor=processor)


def chat(picture, text):
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]


def test_pipeline_answers_a_chat(answering, qwen2, processor, pictures):
    options = {"max_new_tokens": 6, "do_sample": False}
    answer = answering(text=chat(pictures[0], "what?"), generate_kwargs=options, return_full_text=False)
    inputs = processor.apply_chat_template(
        chat(pictures[0], "what?"),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    expected = qwen2.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert answer[0]["generated_text"] == processor.decode(expected, skip_special_tokens=True)


def test_pipeline_answers_several_prompts(answering, pictures):
    options = {"max_new_tokens": 3, "do_sample": False}
    answers = answering(
        images=[pictures[0], pictures[1]], text=["<image>a?", "<image>longer?"], generate_kwargs=options
    )
    assert [answer["input_text"] for answer in answers] == ["<image>a?", "<image>longer?"]
    chats = [chat(pictures[0], "a?"), chat(pictures[1], "b?")]
    assert len(answering(text=chats, generate_kwargs=options)) == 2
    assert answering(text="text alone", generate_kwargs=options)[0]["generated_text"].startswith("text alone")
