"""Virtual unmerging in live language models."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.unmerging import sequence_groups, virtual_attention
from foveate.runtime.virtual_unmerging import virtual_unmerging

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": None,
}


@pytest.fixture(params=["llama", "qwen3"])
def model(request):
    torch.manual_seed(1)
    if request.param == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SIZES))
    else:
        made = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture
def prompt():
    """Embeddings (2, 12, 32) of two images between text, patches of one group equal, and their groups."""
    image = torch.zeros(2, 12).bool()
    image[0, 2:9] = True
    image[1, 4:10] = True
    group = sequence_groups(image, [torch.tensor([0, 0, 1, 2, 1, 0, 2]), torch.tensor([0, 1, 2, 2, 2, 0])])
    rows = torch.randn(2, 12, 32)
    return rows.gather(1, group[..., None].expand(-1, -1, 32)), group


def loop(model, embeddings, group):
    """Layer by layer on the short rows, as the paper says; one sequence."""
    rows = int(group.max()) + 1
    x = torch.stack([embeddings[group == row].mean(0) for row in range(rows)])[None]
    cos, sin = model.model.rotary_emb(embeddings[None], torch.arange(len(group))[None])
    for layer in model.model.layers:
        attend = layer.self_attn
        y = layer.input_layernorm(x)
        q, k, v = (getattr(attend, name)(y).view(1, rows, -1, 8) for name in ("q_proj", "k_proj", "v_proj"))
        if hasattr(attend, "q_norm"):
            q, k = attend.q_norm(q), attend.k_norm(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = virtual_attention(q, k, v, group[None], cos, sin).transpose(1, 2).flatten(2)
        x = x + attend.o_proj(y)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))[0, group]


def test_as_the_paper_says(model, prompt):
    embeddings, group = prompt
    with torch.no_grad():
        with virtual_unmerging(model, group):
            logits = model(inputs_embeds=embeddings).logits
        for row in range(2):
            expected = loop(model, embeddings[row], group[row])
            torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)


def test_projections_and_mlp_are_shorter(model, prompt):
    embeddings, group = prompt
    rows = int(group.max()) + 1
    seen = set()
    with torch.no_grad(), virtual_unmerging(model, group):
        for layer in model.model.layers:
            for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
                module.register_forward_hook(lambda _, args, output: seen.add(args[0].shape[1]))
        model(inputs_embeds=embeddings)
    assert seen == {rows} and rows < 12


def test_calls_of_another_length_are_left_alone(model, prompt):
    _, group = prompt
    other = torch.randn(2, int(group.max()) + 1, 32)  # as long as the merged rows
    with torch.no_grad():
        before = model(inputs_embeds=other).logits
        with virtual_unmerging(model, group):
            assert torch.equal(model(inputs_embeds=other).logits, before)


def test_groups_of_one_change_nothing(model):
    embeddings = torch.randn(2, 9, 32)
    with torch.no_grad():
        before = model(inputs_embeds=embeddings).logits
        with virtual_unmerging(model, torch.arange(9).expand(2, 9)):
            assert torch.equal(model(inputs_embeds=embeddings).logits, before)


def test_cache_has_full_length_and_answers_agree(model, prompt):
    embeddings, group = prompt
    with torch.no_grad(), virtual_unmerging(model, group):
        cached = model.generate(inputs_embeds=embeddings, max_new_tokens=5, do_sample=False)
        output = model(inputs_embeds=embeddings, use_cache=True)
        assert compat.cache_of(output).get_seq_length() == 12
        again = model.generate(inputs_embeds=embeddings, max_new_tokens=5, do_sample=False, num_beams=1)
        beams = model.generate(inputs_embeds=embeddings, max_new_tokens=5, num_beams=3, do_sample=False)
    assert torch.equal(cached, again) and beams.shape == cached.shape
    # The first new token read on its own, without a cache: a longer sequence whose last position is for itself.
    longer = torch.cat([embeddings, model.get_input_embeddings()(cached[:, :1])], dim=1)
    group = torch.cat([group, group.amax(1, keepdim=True) + 1], dim=1)
    with torch.no_grad(), virtual_unmerging(model, group):
        assert torch.equal(model(inputs_embeds=longer).logits[:, -1].argmax(-1), cached[:, 1])


def test_left_padding(model, prompt):
    embeddings, group = prompt
    pad = 3
    padded = F.pad(embeddings[:1], (0, 0, pad, 0))
    wide = torch.cat([torch.arange(pad)[None], group[:1] + pad], dim=1)
    mask = torch.ones(1, 12 + pad).long()
    mask[:, :pad] = 0
    with torch.no_grad():
        with virtual_unmerging(model, group[:1]):
            alone = model(inputs_embeds=embeddings[:1]).logits
        with virtual_unmerging(model, wide):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            together = model(inputs_embeds=padded, attention_mask=mask, position_ids=positions).logits[:, pad:]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_afterwards_the_model_is_as_it_was(model, prompt):
    embeddings, group = prompt
    with torch.no_grad():
        before = model(inputs_embeds=embeddings).logits
        with virtual_unmerging(model, group):
            model(inputs_embeds=embeddings)
        assert torch.equal(model(inputs_embeds=embeddings).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_other_models_are_refused():
    small = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(FoveateError, match="not on GPT2Model"), virtual_unmerging(small, torch.zeros(1, 4).long()):
        pass
