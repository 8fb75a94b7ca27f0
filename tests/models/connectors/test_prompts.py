"""What models give to connectors that read the prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate import compat
from foveate.answering.trace import Trace
from foveate.core.errors import FoveateError
from foveate.image_kv_cache import ImageMemory
from foveate.models.connectors.prompts import Prompts
from foveate.models.llava_uhd.voco import add_voco_tokens
from foveate.training.training_model import TrainingModel
from tests.models.llava.small_llava import pictures, small_llava, small_processor
from tests.models.llava_uhd.test_llava_uhd_connectors import made

OPTIONS = {"scale": 3}
TEXTS = ["a<image> and <image>: compare them", "<image>so?"]


@pytest.fixture(scope="module", params=["llava", "llava-uhd"])
def parts(request):
    """A model with QueCC and its processor; read them, do not change them."""
    if request.param == "llava":
        return small_llava("quecc", **OPTIONS), small_processor("quecc", **OPTIONS)
    return made("quecc", scale=2)


@pytest.fixture
def model(parts):
    yield parts[0].eval()
    parts[0].eval().zero_grad()


def batch_of(parts, texts=TEXTS, **kwargs):
    images = [pictures()[:2], pictures()[2:]]
    return parts[1](images=images, text=list(texts), return_tensors="pt", padding=True, **kwargs)


@pytest.fixture
def batch(parts):
    return batch_of(parts)


@pytest.fixture
def read(model, monkeypatch):
    """Texts that the connector reads, one tensor `(n, 1, d)` per call."""
    texts = []
    connector = model.model.multi_modal_projector
    connect = type(connector).connect
    monkeypatch.setattr(
        type(connector), "connect", lambda *args: (texts.append(args[-1].detach().clone()), connect(*args))[1]
    )
    return texts


def vectors(texts: list[torch.Tensor]) -> torch.Tensor:
    """All text vectors of a pass, whatever the calls they came in."""
    return torch.cat(texts)[:, 0]


def slow(model, batch, answers=None) -> list[torch.Tensor]:
    """One vector per prompt: its text tokens before the first answer, alone, one prompt at a time."""
    result = []
    for row, ids in enumerate(batch["input_ids"].tolist()):
        kept = []
        for column, token in enumerate(ids):
            if answers is not None and answers[row][column]:
                break
            if token != model.config.image_token_id and batch["attention_mask"][row, column]:
                kept.append(token)
        with torch.no_grad():
            hidden = model.model.language_model(input_ids=torch.tensor([kept])).last_hidden_state
        result.append(hidden[0, -1])
    return result


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_image_gets_the_last_state_of_its_prompt(parts, model, read, side):
    parts[1].tokenizer.padding_side = side
    try:
        batch = batch_of(parts)
    finally:
        parts[1].tokenizer.padding_side = "left"
    model(**batch)
    first, second = slow(model, batch)
    in_calls = vectors(read)
    assert len(in_calls) == 3
    for expected, count in ((first, 2), (second, 1)):
        close = [torch.allclose(one, expected, atol=1e-5) for one in in_calls]
        assert sum(close) == count


def test_the_question_changes_image_tokens_and_its_images_only(parts, model):
    batch, other = batch_of(parts), batch_of(parts, [TEXTS[0], "<image>no?"])
    tokens = [model.model.encode_with_prompts(inputs).pooler_output for inputs in (batch, other)]
    same = [torch.allclose(*pair, atol=1e-5) for pair in zip(*tokens, strict=True)]
    assert same == [True, True, False]


def test_a_batch_equals_single_prompts(parts, model, batch):
    logits = model(**batch).logits
    for row, (images, text) in enumerate(zip((pictures()[:2], pictures()[2:]), TEXTS, strict=True)):
        single = parts[1](images=images, text=text, return_tensors="pt")
        alone = model(**single).logits[0]
        torch.testing.assert_close(logits[row][batch["attention_mask"][row].bool()], alone, atol=1e-4, rtol=1e-4)


def test_generate_reads_the_prompt_once(model, batch, read):
    cached = model.generate(**batch, max_new_tokens=4, do_sample=False)
    once = vectors(read).clone()
    assert len(once) == 3
    read.clear()
    assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False), cached)
    assert torch.equal(vectors(read), once)
    step = model(**batch).logits[:, -1].argmax(-1)
    assert torch.equal(cached[:, batch["input_ids"].shape[1]], step)
    assert model.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False).shape[0] == 2
    ids = batch.pop("input_ids")
    assert torch.equal(model.generate(ids, **batch, max_new_tokens=4, do_sample=False), cached)


def test_answers_do_not_change_what_is_read(model, batch, read):
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    model.train()
    model(**batch, labels=labels, answer_mask=None).loss.backward()
    before = vectors(read).clone()
    assert not before.requires_grad
    ids = batch["input_ids"].clone()
    ids[:, -2:] = torch.tensor([[65, 66], [67, 68]])
    read.clear()
    model(**{**batch, "input_ids": ids}, labels=torch.where(labels == -100, -100, ids))
    assert torch.equal(vectors(read), before)
    expected = slow(model, batch, (labels != -100).tolist())
    assert all(any(torch.allclose(one, row, atol=1e-5) for one in before) for row in expected)
    connector = dict(model.model.multi_modal_projector.named_parameters())
    assert all(parameter.grad is not None for parameter in connector.values())


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(**batch, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    model.gradient_checkpointing_disable()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_the_pass_of_the_question_is_part_of_the_prefill(model, batch):
    trace = Trace(model)
    with trace.watching():
        model.generate(**batch, max_new_tokens=2, do_sample=False)
    question, prefill, _ = trace._spans["language_model"]
    times = trace.times(trace.now())
    assert times["prefill"] == pytest.approx(sum(end - start for start, end in (question, prefill)))


def test_later_turns_do_not_change_what_is_read():
    embeds = torch.zeros(1, 8, 2)
    placeholders = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    answers = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 1]]).bool()
    prompts = Prompts(embeds, placeholders, torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]]), answers)
    assert prompts.question.int().tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    assert prompts.instructions.int().tolist() == [[0, 0, 0, 1, 0, 0, 1, 0]]


def test_the_trainer_of_recipes_reads_no_answers(model, batch, read):
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    TrainingModel(model)(labels=labels, **batch)
    trained = vectors(read).clone()
    read.clear()
    model.eval()(**batch, labels=labels)
    assert torch.equal(vectors(read), trained)


@pytest.mark.parametrize("plan", ["divprune:2", "fastervlm:2", "downsample:50%", "fastv:50%@1"])
def test_plans_act_on_tokens_of_the_prompt(parts, model, batch, read, plan):
    model(**batch)
    before = vectors(read).clone()
    read.clear()
    with foveate.compress(model, plan) as handle:
        logits = model(**batch).logits
        assert len(handle.report().images) == 3
        generated = model.generate(**batch, max_new_tokens=2, do_sample=False)
        assert torch.equal(generated[:, -2], logits[:, -1].argmax(-1))
    torch.testing.assert_close(vectors(read), torch.cat([before, before]))


def test_what_cannot_be_read_is_refused(parts, model, batch):
    with pytest.raises(FoveateError, match="reads the prompt: give it as text"):
        model.get_image_features(**{name: batch[name] for name in batch if name not in ("input_ids", "attention_mask")})
    with pytest.raises(FoveateError, match="in training must know which tokens are answers"):
        model.train()(**batch)
    model.eval()
    with pytest.raises(FoveateError, match="prompt 1 has no text before its answer"):
        model(**batch_of(parts, [TEXTS[0], "<image>"]))
    with pytest.raises(FoveateError, match="needs attention_mask with one value for every token"):
        model(**{**batch, "attention_mask": torch.ones(2, 1, 4, 4)})
    length = batch["input_ids"].shape[1]
    packed = torch.cat([torch.arange(length - 2), torch.arange(2)]).expand(2, -1)
    with pytest.raises(FoveateError, match="a row here holds several samples"):
        model(**batch, position_ids=packed)
    cache = DynamicCache(config=model.config.get_text_config())
    start = torch.full((2, 1), 65)
    model(input_ids=start, attention_mask=torch.ones_like(start), **compat.cache_argument(cache))
    with pytest.raises(FoveateError, match="a part of these is in the cache"):
        model(**batch, **compat.cache_argument(cache))
    ids = batch["input_ids"].clone()
    ids[1, -1] = model.config.image_token_id
    with pytest.raises(FoveateError, match="needs one placeholder for each token of its images"):
        model(**{**batch, "input_ids": ids})
    model.generation_config.pad_token_id = 256
    with pytest.raises(FoveateError, match="the ids have padding"):
        model.generate(**{name: value for name, value in batch.items() if name != "attention_mask"})


def test_a_conversation_goes_on_with_a_new_image(parts, model, read):
    """The new image reads the whole conversation; the old one stays as it was read."""
    first = parts[1](images=pictures()[:1], text="<image>so?", return_tensors="pt")
    cache = DynamicCache(config=model.config.get_text_config())
    written = model.generate(**first, max_new_tokens=2, do_sample=False, **compat.cache_argument(cache))
    more = parts[1](images=pictures()[1:2], text="and <image>?", return_tensors="pt")
    ids = torch.cat([written, more["input_ids"]], dim=1)
    images = {name: value for name, value in more.items() if name not in ("input_ids", "attention_mask")}
    read.clear()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.generate(**inputs, **images, max_new_tokens=1, do_sample=False, **compat.cache_argument(cache))
    (expected,) = slow(model, inputs)
    torch.testing.assert_close(vectors(read), expected[None], atol=1e-5, rtol=1e-4)


def test_image_memory_refuses_tokens_of_one_question():
    model, processor = made("quecc", scale=2)
    add_voco_tokens(model, processor, 2)
    with pytest.raises(FoveateError, match="quecc of this model reads the question"):
        ImageMemory(model, processor, pictures()[0])
