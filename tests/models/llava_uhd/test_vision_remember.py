"""Vision Remember: against a loop over regions, at step 0, and in everything that a model does."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate import cost as cost_of
from foveate.cost import flops
from foveate.models.llava_uhd.vision_remember import VisionRemember, add_vision_remember, regions
from foveate.models.llava_uhd.voco import add_voco_tokens
from tests.checkpointing import checkpoint


def test_regions_are_the_squares_that_tokens_were_made_of() -> None:
    """Two images of 2 x 1 and 1 x 2 tokens, each of 2 x 2 features, which are numbered row by row."""
    found = regions(torch.arange(16.0)[:, None], torch.tensor([[2, 1], [1, 2]]), 2)
    assert found[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_attention_equals_a_loop_over_tokens_heads_and_features() -> None:
    torch.manual_seed(0)
    module = VisionRemember(8, 6, num_heads=2, num_levels=2)
    torch.nn.init.normal_(module.out.weight)
    torch.nn.init.normal_(module.places)
    hidden, memory = torch.randn(3, 6), torch.randn(3, 5, 8)
    with torch.no_grad():
        found = module(hidden, memory)
        for token in range(3):
            features = [module.norms[0](memory[token, k]) + module.places[k] for k in range(4)]
            features.append(module.norms[1](memory[token, 4]) + module.places[4])
            query = module.query(module.norm(hidden[token]))
            keys, values = zip(*[module.key_value(feature).split(8) for feature in features], strict=True)
            mixed = []
            for head in range(2):
                own = slice(4 * head, 4 * head + 4)
                scores = [math.exp(float(query[own] @ key[own]) / 2) for key in keys]
                mixed.append(sum(s / sum(scores) * v[own] for s, v in zip(scores, values, strict=True)))
            torch.testing.assert_close(found[token], module.out(torch.cat(mixed)), atol=1e-5, rtol=1e-5)


def remembering(model, trained: bool = True):
    """A copy with a module before layer 1; `trained`: one that says something."""
    model = copy.deepcopy(model)
    add_vision_remember(model, [1])
    if trained:
        torch.manual_seed(1)
        torch.nn.init.normal_(model.model.vision_remember["1"].out.weight)
    return model


def test_a_new_module_changes_no_bit(model, batch):
    with torch.no_grad():
        assert torch.equal(remembering(model, trained=False)(**batch).logits, model(**batch).logits)
        assert not torch.allclose(remembering(model)(**batch).logits, model(**batch).logits)


def test_what_it_costs(qwen2, processor, pictures):
    model = remembering(qwen2)
    inputs = processor(images=[pictures[0]], text="a <image> b", return_tensors="pt")
    shape = cost_of.shape_of(model.config)
    processed = cost_of.processed_image(model.config, *pictures[0].size, processor.image_processor)
    text = inputs["input_ids"].shape[1] - processed.tokens
    cost = cost_of.cost(shape, cost_of.follow(None, shape, processed), text)
    with torch.inference_mode():
        _, by_module = flops.count_modules(lambda: model.requires_grad_(False)(**inputs, logits_to_keep=1))
    name = f"{type(model).__name__}.model.vision_remember.1"
    assert cost.parts["vision remember"] == by_module.get(name, 0) > 0
    assert cost.total == by_module["Global"]


def test_visual_rows_alone_change_and_by_their_own_region(qwen2, processor, pictures):
    """What enters layer 1 of two images that differ in one token's region, as the encoder's features go."""
    model = remembering(qwen2)
    inputs = processor(images=[pictures[3]], text="a <image> b", return_tensors="pt")
    entered: list[torch.Tensor] = []
    hook = model.model.language_model.layers[1].input_layernorm.register_forward_pre_hook(
        lambda module, args: entered.append(args[0][0])
    )
    outputs = model.get_image_features(inputs["pixel_values"], inputs["grid_hws"])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    image = inputs["input_ids"][0] == model.config.image_token_id
    with torch.no_grad():
        model(**text, mm_encoder_outputs={"image": outputs})
        outputs.deepstack_features[0][0] = outputs.deepstack_features[0][0].clone()
        outputs.deepstack_features[0][0][5] += 1 + torch.arange(16)
        model(**text, mm_encoder_outputs={"image": outputs})
        hook.remove()
    changed = (entered[0] != entered[1]).any(dim=-1)
    assert changed.nonzero().flatten().tolist() == [int(image.nonzero()[0]) + 5]
    assert outputs.deepstack_features[0][0].shape == (12, 16 + 4 + 1, 16)


def test_a_batch_is_its_prompts_and_a_cache_changes_nothing(model, batch, singles):
    model = remembering(model)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "suppress_tokens": [259]}
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **options)[:, length:]
    assert torch.equal(model.generate(**batch, **options, use_cache=False)[:, length:], together)
    for row, inputs in zip(together, singles, strict=True):
        assert torch.equal(model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :], row)
    beams = model.generate(**batch, **options, num_beams=3)
    assert torch.equal(beams, model.generate(**batch, **options, num_beams=3, use_cache=False))


def test_together_with_voco_tokens(fresh, processor, pictures):
    processor = copy.deepcopy(processor)
    add_voco_tokens(fresh, processor, 2)
    model = remembering(fresh)
    inputs = processor(images=[pictures[0]], text="a <image> b", return_tensors="pt")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "suppress_tokens": [259]}
    found = model.generate(**inputs, **options)
    assert torch.equal(found, model.generate(**inputs, **options, use_cache=False))


def test_gradients_with_checkpointing_are_those_without(fresh, batch):
    model = remembering(fresh).train()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint(model)
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert [name for name in found[0] if "vision_remember.1.query" in name]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_the_first_step_moves_what_comes_out(fresh, batch):
    model = remembering(fresh, trained=False).train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    module = model.model.vision_remember["1"]
    assert float(module.out.weight.grad.abs().sum()) > 0


def test_a_saved_model_remembers_again(model, processor, batch, tmp_path):
    model = remembering(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = foveate.load(tmp_path, device="cpu")
    assert loaded.config.vision_remember_layers == [1]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        assert torch.equal(copy.deepcopy(loaded)(**batch).logits, model(**batch).logits)


def test_a_new_model_of_a_configuration_begins_with_zero(qwen2, batch):
    config = copy.deepcopy(qwen2.config)
    config.vision_remember_layers = [1]
    torch.manual_seed(0)
    model = type(qwen2)(config).eval()
    assert not model.model.vision_remember["1"].out.weight.any()
    missing, unexpected = model.load_state_dict(qwen2.state_dict(), strict=False)
    assert not unexpected
    assert all("vision_remember" in name for name in missing)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, qwen2(**batch).logits)


def test_what_cannot_be_is_refused(qwen2):
    model = remembering(qwen2)
    with pytest.raises(FoveateError, match="has Vision Remember, which needs every .*'fastv:3@1' cannot be attached"):
        foveate.compress(model, "fastv:3@1")
    with pytest.raises(FoveateError, match="before layers 1 already"):
        add_vision_remember(model, [1])
    for layers in ([0], [2], [1, 1], []):
        with pytest.raises(FoveateError, match="stands before layers 1 to 1 of this model"):
            add_vision_remember(copy.deepcopy(qwen2), layers)
