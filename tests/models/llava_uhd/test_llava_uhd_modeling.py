"""LLaVA-UHD's forward pass, loss, saving, training and adapters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    Trainer,
    TrainingArguments,
)

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.models.llava_uhd import LlavaUHDConfig, LlavaUHDForConditionalGeneration, LlavaUHDModel
from foveate.models.vit_uhd import ViTUHDModel
from tests.checkpointing import checkpoint
from tests.models.llava_uhd.small_llava_uhd import TEXT_FIELDS, small_text_config, small_vision_config

IMAGE = 259


def answers_as_labels(batch):
    """Labels of the last four positions of each prompt."""
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -4:] = batch["input_ids"][:, -4:]
    return labels


# ---------------------------------------------------------------- forward


@torch.no_grad()
def test_images_are_spliced_row_major_in_order(model, batch):
    """The logits are those of the bare language model on embeddings assembled token by token."""
    features = model.get_image_features(batch["pixel_values"], batch["grid_hws"])
    assert features.grid_hws.tolist() == [[2, 3], [2, 2], [3, 1]]
    assert [len(tokens) for tokens in features.pooler_output] == [6, 4, 3]
    flat = iter([token for image in features.pooler_output for token in image])
    table = model.get_input_embeddings().weight
    embeds = torch.stack(
        [torch.stack([next(flat) if token == IMAGE else table[token] for token in row]) for row in batch["input_ids"]]
    )
    hidden = model.model.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])[0]
    expected = hidden @ model.lm_head.weight.T
    assert torch.allclose(model(**batch).logits, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_single_prompts(model, processor, pictures, singles, side):
    images = [[pictures[0], pictures[1]], [pictures[2]], []]
    texts = ["<image> and <image>: compare", "<image>?", "no image at all"]
    batch = processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side=side)
    position_ids = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = model(**batch, position_ids=position_ids).logits
    for row, mask, single in zip(logits, batch["attention_mask"], singles, strict=True):
        assert torch.allclose(row[mask.bool()], model(**single).logits[0], atol=1e-4)


@torch.no_grad()
def test_every_image_of_a_prompt_changes_the_answer(qwen2, processor, pictures):
    first, second, other = pictures[0], pictures[1], pictures[1].rotate(90)
    text = "<image> and <image>"
    base = qwen2(**processor(images=[first, second], text=text, return_tensors="pt")).logits
    changed = qwen2(**processor(images=[first, other], text=text, return_tensors="pt")).logits
    before_second = 6 + len(" and ")
    assert torch.equal(base[0, :before_second], changed[0, :before_second])
    assert not torch.allclose(base[0, -1], changed[0, -1], atol=1e-2)


@torch.no_grad()
def test_text_alone_is_the_bare_language_model(model, processor):
    """With the weights of the same `AutoModelForCausalLM`, bit for bit."""
    language_model = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    language_model.base_model.load_state_dict(model.model.language_model.state_dict())
    language_model.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    inputs = processor(text=["a question", "another, longer"], return_tensors="pt", padding=True)
    assert torch.equal(model(**inputs).logits, language_model(**inputs).logits)


@torch.no_grad()
def test_logits_to_keep(qwen2, batch):
    logits = qwen2(**batch).logits
    assert torch.allclose(qwen2(**batch, logits_to_keep=2).logits, logits[:, -2:], atol=1e-6)
    positions = torch.tensor([0, 5])
    assert torch.allclose(qwen2(**batch, logits_to_keep=positions).logits, logits[:, positions], atol=1e-6)


@torch.no_grad()
def test_embeddings_in_place_of_ids(qwen2, batch):
    embeds = qwen2.get_input_embeddings()(batch["input_ids"])
    others = {name: batch[name] for name in ("attention_mask", "pixel_values", "grid_hws")}
    assert torch.equal(qwen2(inputs_embeds=embeds, **others).logits, qwen2(**batch).logits)


@torch.no_grad()
def test_images_encoded_beforehand(qwen2, batch):
    encoded = qwen2.get_image_features(batch["pixel_values"], batch["grid_hws"])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = qwen2(**text, mm_encoder_outputs={"image": encoded})
    assert torch.equal(output.logits, qwen2(**batch).logits)
    assert torch.equal(output.image_hidden_states, torch.cat(encoded.pooler_output))


@torch.no_grad()
def test_tuple_output(qwen2, batch):
    output = qwen2(**batch, labels=answers_as_labels(batch), return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].ndim == 0
    assert output[1].shape == (*batch["input_ids"].shape, 260)


@torch.no_grad()
def test_hidden_states_of_both_parts(qwen2, batch):
    output = qwen2(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    features = qwen2.get_image_features(batch["pixel_values"], batch["grid_hws"], output_hidden_states=True)
    assert [len(states) for states in features.hidden_states] == [13 * 16, 13 * 4, 13, 13]


def test_parts_are_where_tools_look_for_them(model):
    assert model.base_model is model.model
    assert model.get_encoder("image") is model.model.vision_tower
    assert model.get_decoder() is model.model.language_model
    assert model.get_output_embeddings() is model.lm_head
    assert model.can_generate()


@torch.no_grad()
def test_attention_implementations_agree(model, batch):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert eager.model.vision_tower.config._attn_implementation == "eager"
    mask = batch["attention_mask"].bool()  # rows of padding attend to nothing
    assert torch.allclose(eager(**batch).logits[mask], model(**batch).logits[mask], atol=1e-4)


@torch.no_grad()
def test_bfloat16(model, batch):
    half = copy.deepcopy(model).to(torch.bfloat16)
    logits = half(**batch).logits
    assert logits.dtype == torch.bfloat16
    agreement = F.cosine_similarity(logits.float()[:, -1], model(**batch).logits[:, -1], dim=-1)
    assert agreement.min() > 0.99


@torch.no_grad()
def test_one_seam_before_the_language_model(model, batch):
    """Methods shorten the sequence in a hook on this call: everything they need comes by keyword."""
    calls = []

    def look(module, args, kwargs):
        assert args == ()
        shapes = {name: tuple(kwargs[name].shape) for name in ("inputs_embeds", "position_ids", "attention_mask")}
        calls.append(shapes | {"cached": compat.cache_in(kwargs).get_seq_length()})

    hook = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        model.generate(**batch, max_new_tokens=2, do_sample=False, eos_token_id=None)
    finally:
        hook.remove()
    length = batch["input_ids"].shape[1]
    assert calls == [
        {
            "inputs_embeds": (3, length, 32),
            "position_ids": (3, length),
            "attention_mask": (3, length),
            "cached": 0,
        },
        {"inputs_embeds": (3, 1, 32), "position_ids": (3, 1), "attention_mask": (3, length + 1), "cached": length},
    ]


# ---------------------------------------------------------------- bad input


def test_placeholders_that_do_not_match(qwen2, batch):
    ids = batch["input_ids"].clone()
    ids[ids == IMAGE] = torch.tensor([IMAGE] * 12 + [97])
    with pytest.raises(FoveateError, match=r"have 12 image placeholders \(token 259\) and the images 13 tokens"):
        qwen2(**{**batch, "input_ids": ids})
    with pytest.raises(FoveateError, match="have 0 image placeholders"):
        qwen2(input_ids=torch.tensor([[1, 2]]), pixel_values=batch["pixel_values"], grid_hws=batch["grid_hws"])


def test_contradicting_inputs(qwen2, batch):
    with pytest.raises(FoveateError, match="without grid_hws"):
        qwen2(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    with pytest.raises(FoveateError, match="exactly one of input_ids and inputs_embeds"):
        qwen2(pixel_values=batch["pixel_values"], grid_hws=batch["grid_hws"])
    encoded = qwen2.get_image_features(batch["pixel_values"], batch["grid_hws"])
    with pytest.raises(FoveateError, match="not both"):
        qwen2(**batch, mm_encoder_outputs={"image": encoded})


def test_grid_that_stages_cannot_divide(qwen2):
    grid = torch.tensor([[6, 4]])
    with pytest.raises(FoveateError, match="6"):
        qwen2(input_ids=torch.full((1, 1), IMAGE), pixel_values=torch.zeros(24, 3, 4, 4), grid_hws=grid)


# ---------------------------------------------------------------- loss and training


def test_loss_is_the_cross_entropy_of_shifted_labels(model, batch):
    labels = answers_as_labels(batch)
    output = model(**batch, labels=labels)
    losses = []
    for row in range(len(labels)):
        for position in range(1, labels.shape[1]):
            if labels[row, position] != -100:
                log_probabilities = output.logits[row, position - 1].log_softmax(-1)
                losses.append(-log_probabilities[labels[row, position]])
    assert len(losses) == 12
    assert torch.allclose(output.loss, torch.stack(losses).mean(), atol=1e-5)
    accumulated = model(**batch, labels=labels, num_items_in_batch=24).loss
    assert torch.allclose(accumulated, torch.stack(losses).sum() / 24, atol=1e-5)


def test_gradients_reach_every_part(fresh, batch):
    fresh.train()(**batch, labels=answers_as_labels(batch)).loss.backward()
    without = {
        name
        for name, parameter in fresh.named_parameters()
        if not (parameter.grad is not None and parameter.grad.any())
    }
    # The first layer of a content-adaptive stage moves once its second has left zero.
    assert {name for name in without if "merger.attn_layer.0" not in name} == set()


def test_gradient_checkpointing_changes_no_gradient(fresh, batch):
    labels = answers_as_labels(batch)
    checkpointed = copy.deepcopy(fresh).train()
    checkpoint(checkpointed)
    assert checkpointed.model.vision_tower.encoder.blocks[0].gradient_checkpointing
    assert checkpointed.model.language_model.layers[0].gradient_checkpointing
    for candidate in (fresh.train(), checkpointed):
        candidate(**batch, labels=labels).loss.backward()
    for (name, plain), other in zip(fresh.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.allclose(plain.grad, other.grad, atol=1e-6), name


def test_trainer_overfits_two_answers(fresh, processor, pictures, tmp_path):
    """Through `transformers.Trainer`, with samples of different sizes packed by a collator."""

    def collate(samples):
        inputs = processor(
            images=[[image] for image, _ in samples],
            text=[f"<image>{answer}" for _, answer in samples],
            return_tensors="pt",
            padding=True,
        )
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
        return {**inputs, "labels": labels.masked_fill(inputs["attention_mask"] == 0, -100)}

    samples = [(pictures[0], "yes"), (pictures[1], "no")]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(model=fresh, args=arguments, train_dataset=samples, eval_dataset=samples, data_collator=collate)
    assert trainer.model_accepts_loss_kwargs
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 4


def test_lora_trains_adapters_only_and_comes_back(fresh, batch, tmp_path):
    peft = pytest.importorskip("peft")
    base = copy.deepcopy(fresh)
    labels = answers_as_labels(batch)
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj", "wqkv", "linear_1"], r=2, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(fresh, settings)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.5)
    start = adapted(**batch, labels=labels).loss
    for _ in range(2):  # the first step moves one factor of each adapter, the second both
        optimizer.zero_grad()
        adapted(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert adapted(**batch, labels=labels).loss < start

    adapted.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(**batch).logits
        loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        assert torch.equal(loaded(**batch).logits, expected)
        assert torch.allclose(loaded.merge_and_unload()(**batch).logits, expected, atol=1e-4)
    assert loaded.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 3


def test_lora_with_gradient_checkpointing(fresh, batch):
    """Frozen embeddings and checkpointed blocks still pass gradients to the adapters of every part."""
    peft = pytest.importorskip("peft")
    plain = copy.deepcopy(fresh)
    gradients = []
    for candidate, checkpointing in ((plain, False), (fresh, True)):
        torch.manual_seed(0)
        settings = peft.LoraConfig(target_modules=["q_proj", "wqkv", "linear_1"], r=2, init_lora_weights=False)
        adapted = peft.get_peft_model(candidate, settings).train()
        if checkpointing:
            adapted.enable_input_require_grads()
            checkpoint(adapted)
        adapted(**batch, labels=answers_as_labels(batch)).loss.backward()
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert len(gradients[0]) == 2 * (2 + 3 + 1)
    for expected, found in zip(*gradients, strict=True):
        assert expected.any()
        assert torch.allclose(expected, found, atol=1e-5)


# ---------------------------------------------------------------- saving, loading, building


@torch.no_grad()
def test_saved_and_loaded_by_the_auto_classes(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    expected = model(**batch).logits
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is LlavaUHDForConditionalGeneration
    assert torch.equal(loaded(**batch).logits, expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LlavaUHDConfig
    assert type(config.text_config) is type(model.config.text_config)
    assert config.image_token_id == 259
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is LlavaUHDModel
    assert torch.equal(base(**batch).last_hidden_state, model.model(**batch).last_hidden_state)


@torch.no_grad()
def test_saved_in_shards_and_in_bfloat16(qwen2, batch, tmp_path):
    half = copy.deepcopy(qwen2).to(torch.bfloat16)
    half.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in half.state_dict().items())
    again = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.allclose(again(**batch).logits[:, -1], qwen2(**batch).logits[:, -1], atol=0.3)


@torch.no_grad()
def test_tied_embeddings_stay_tied(fresh, batch, tmp_path):
    assert fresh.lm_head.weight is fresh.get_input_embeddings().weight
    fresh.save_pretrained(tmp_path)
    loaded, info = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded(**batch).logits, fresh(**batch).logits)


@torch.no_grad()
def test_vocabulary_can_grow(fresh, batch):
    expected = fresh(**batch).logits
    fresh.resize_token_embeddings(272)
    assert fresh.config.text_config.vocab_size == 272
    assert fresh.lm_head.weight is fresh.get_input_embeddings().weight
    assert torch.allclose(fresh(**batch).logits[..., :260], expected, atol=1e-6)


OTHER_LANGUAGE_MODELS = {
    "cohere": CohereConfig(**TEXT_FIELDS, logit_scale=0.25),
    "granite": GraniteConfig(**TEXT_FIELDS, logits_scaling=4.0),
    "gemma2": Gemma2Config(**TEXT_FIELDS, final_logit_softcapping=5.0),
    "gpt2": GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.3),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OTHER_LANGUAGE_MODELS)
def test_other_language_models(name, processor, batch, tmp_path):
    """Other names, scaled and capped logits, tied output layers: text alone is the bare language model."""
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(OTHER_LANGUAGE_MODELS[name]).eval()
    text = processor(text="a question", return_tensors="pt")
    expected = language_model(**text).logits
    joined = LlavaUHDForConditionalGeneration.from_parts(ViTUHDModel(small_vision_config()), language_model, IMAGE)
    assert torch.equal(joined.eval()(**text).logits, expected)
    joined.save_pretrained(tmp_path)
    loaded = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is joined.config.tie_word_embeddings
    assert torch.equal(loaded(**text).logits, expected)
    assert torch.equal(loaded(**batch).logits, joined(**batch).logits)
    generated = loaded.generate(**text, max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, language_model.generate(**text, max_new_tokens=4, do_sample=False))


def test_from_parts_keeps_both_parts_and_makes_a_trainable_connector(batch):
    torch.manual_seed(0)
    tower = ViTUHDModel(small_vision_config())
    language_model = AutoModelForCausalLM.from_config(small_text_config("qwen3", tie_word_embeddings=True))
    language_model = language_model.to(torch.bfloat16)
    joined = LlavaUHDForConditionalGeneration.from_parts(tower, language_model, IMAGE, projector_hidden_act="silu")
    assert joined.model.vision_tower is tower
    assert joined.model.language_model is language_model.model
    connector = joined.model.multi_modal_projector
    assert connector.linear_1.weight.dtype == torch.bfloat16
    assert 0.2 < connector.linear_1.weight.float().std() < 0.4
    assert not connector.linear_1.bias.any()
    assert type(connector.act).__name__.startswith("SiLU")
    assert not any(parameter.is_meta for parameter in joined.parameters())
    tower.to(torch.bfloat16)
    joined(**batch, labels=answers_as_labels(batch)).loss.backward()
    assert connector.linear_1.weight.grad.any()


def test_from_parts_refuses_what_it_cannot_join():
    tower = ViTUHDModel(small_vision_config())
    language_model = AutoModelForCausalLM.from_config(small_text_config("qwen2", vocab_size=200, pad_token_id=None))
    with pytest.raises(FoveateError, match=r"image_token_id 259 is outside .* \(0 to 199\): resize"):
        LlavaUHDForConditionalGeneration.from_parts(tower, language_model, IMAGE)
    with_bias = AutoModelForCausalLM.from_config(
        PhiConfig(vocab_size=260, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(FoveateError, match="PhiForCausalLM .* without bias"):
        LlavaUHDForConditionalGeneration.from_parts(tower, with_bias, IMAGE)


# ---------------------------------------------------------------- configuration


def test_configuration_from_dicts_and_back(tmp_path):
    vision = small_vision_config().to_dict()
    text = small_text_config("llama", tie_word_embeddings=True).to_dict()
    config = LlavaUHDConfig(vision_config=vision, text_config=text, image_token_index=7)
    assert config.image_token_id == config.image_token_index == 7
    assert config.tie_word_embeddings
    assert config.get_text_config() is config.text_config
    config.save_pretrained(tmp_path)
    loaded = LlavaUHDConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_config.num_stages == 2
    assert loaded.text_config.model_type == "llama"


def test_default_configuration_is_the_published_shape():
    config = LlavaUHDConfig()
    assert config.vision_config.hidden_size == 1152
    assert config.vision_config.unit == 40
    assert config.text_config.model_type == "qwen2"
    assert not LlavaUHDConfig(tie_word_embeddings=False).tie_word_embeddings


def test_a_placeholder_that_is_no_token():
    with pytest.raises(FoveateError, match="image_token_id must be a token, 0 or more, not -200"):
        LlavaUHDConfig(image_token_index=-200)
