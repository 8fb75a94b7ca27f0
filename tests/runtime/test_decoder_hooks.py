"""Methods inside the language model, on live models: held against masks, single prompts and passes without a cache."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate import FoveateError, compat
from foveate.core.method import Site
from foveate.core.plan import Plan
from foveate.core.registry import methods_at
from foveate.families import family_of
from foveate.families.text_models import TEXT_TYPES
from foveate.testing.live import answers, logits
from tests.checkpointing import checkpoint
from tests.families.zoo import Specimen, zoo
from tests.refusals import refused
from tests.runtime.matrix import covering

ROWS = (((3, 4),), ((2, 3), (4, 3)), ((4, 5),))
SPECIMENS = [
    name
    for name, specimen in sorted(zoo().items())
    if name not in ("gemma4", "gemma4-e", "kimi-k2.5", "minicpm-v-4.6", "qwen3.5")
]
#: Every method that needs no weights of its own, at layer 1 of a small model; and one after a method before it.
PLANS = [
    *(
        f"{name}@1" if cls.budget == "none" else f"{name}:3@1"
        for name, cls in methods_at(Site.DECODER).items()
        if not cls.trained
    ),
    "divprune:5 + fastv:2@1",
]


def text_of(model: Any) -> Any:
    family = family_of(model)
    return family.text(family.core(model))


@pytest.mark.parametrize("name", SPECIMENS)
def test_all_language_models_of_the_list_are_met(name: str) -> None:
    assert text_of(zoo()[name].model()).config.model_type in TEXT_TYPES


@pytest.mark.parametrize(
    ("name", "method"),
    covering(
        SPECIMENS,
        [name for name, cls in methods_at(Site.DECODER).items() if cls.budget != "none" and not cls.trained],
        5,
    ),
)
def test_keeping_everything_changes_no_bit(name: str, method: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS)
    before = logits(model, inputs)
    with foveate.compress(model, f"{method}:100%@1") as handle:
        found = logits(model, inputs)
        report = handle.report()
        assert all(layer.tokens_in == layer.tokens_kept for image in report.images for layer in image.layers)
        assert report.inert and "nothing was left out" in str(report) and report.as_json()["inert"]
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)


def masked(specimen: Specimen, inputs: dict[str, Any], dropped: Tensor) -> Tensor:
    """Logits of the whole sequence, where from layer 1 on nobody sees the columns `dropped` (B, L)."""
    model = specimen.model()
    text = text_of(model)

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask, length = kwargs["attention_mask"], dropped.shape[1]
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        added = mask.dtype != torch.bool  # eager attention adds its masks
        mask = (mask == 0 if added else mask).expand(len(dropped), 1, -1, -1) & ~dropped[:, None, None]
        mask = mask | torch.eye(length, dtype=torch.bool)  # a dropped column sees something: itself
        if added:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": mask}

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in text.layers[1:]]
    try:
        return logits(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SPECIMENS)
def test_dropping_with_old_positions_is_masking(name: str, side: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS, side=side)
    with foveate.compress(model, "fastv:3@1") as handle:
        found = logits(model, inputs)
        images = handle.report().images
    token = family_of(model).placeholder(family_of(model).core(model), "image")
    places = inputs["input_ids"] == token
    dropped = torch.zeros_like(places)
    start = dict.fromkeys(range(len(places)), 0)
    for image in images:
        own = places[image.row].nonzero().flatten()[start[image.row] :][: image.tokens_in]
        start[image.row] += image.tokens_in
        (layer,) = image.layers
        assert (layer.tokens_in, layer.tokens_kept, layer.layer) == (image.tokens_in, 3, 1)
        gone = torch.ones(len(own), dtype=torch.bool)
        gone[layer.indices] = False
        dropped[image.row, own[gone]] = True
    expected = masked(specimen, inputs, dropped)
    for row in range(len(places)):
        stays = (inputs["attention_mask"][row] > 0) & ~dropped[row]
        width = int(stays.sum())
        own = found[row, -width:] if side == "left" else _unpadded(found[row], inputs["attention_mask"][row], stays)
        torch.testing.assert_close(own, expected[row, stays], atol=2e-4, rtol=2e-4)


def _unpadded(row: Tensor, mask: Tensor, stays: Tensor) -> Tensor:
    """A row of the short sequence without padding: on the right as it came, on the left where others kept more."""
    right = int((mask == 0).sum())
    width = int(stays.sum())
    return row[len(row) - right - width : len(row) - right]


@pytest.mark.parametrize(("name", "plan"), covering(SPECIMENS, PLANS, 5))
def test_a_batch_is_its_prompts_and_a_cache_changes_nothing(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    with foveate.compress(model, plan) as handle:
        together = specimen.prompts(model, ROWS)
        batch = answers(model, together)
        report = handle.report()
        left = [image.layers[-1].tokens_kept if image.layers else image.tokens_kept for image in report.images]
        assert [image.tokens_left for image in report.images] == left
        assert report.inert == ("nothing was left out" in str(report)) == (sum(left) == report.tokens_in)
        if all(step.method.exact_cache for step in Plan.of(plan).decoder_steps):
            assert answers(model, together, use_cache=False) == batch
        first = answers(model, specimen.prompts(model, ROWS[:1]))
    assert batch[0] == first[0]


def ending_in_an_image(specimen: Specimen, alone: bool = False) -> dict[str, Any]:
    """A prompt whose last token is one of its image, `alone`: that has nothing else."""
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS[:1])
    columns = (inputs["input_ids"][0] == family_of(model).placeholder(family_of(model).core(model), "image")).nonzero()
    own = slice(int(columns[0]) if alone else 0, int(columns[-1]) + 1)
    length = inputs["input_ids"].shape[1]
    return {k: v[:, own] if torch.is_tensor(v) and v.shape[:2] == (1, length) else v for k, v in inputs.items()}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("name", "plan"), covering(SPECIMENS, PLANS, 2))
def test_the_token_that_answers_is_never_left_out(name: str, plan: str, alone: bool) -> None:
    """Where a prompt ends in an image, its last token stays in every layer, within the budget, and it answers."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), ending_in_an_image(specimen, alone)
    with foveate.compress(model, plan) as handle:
        written = answers(model, inputs)
        (image,) = handle.report().images
        for layer in image.layers:
            assert layer.indices[-1] == image.selection.indices[-1]
            assert layer.tokens_kept <= (3 if ":" in plan else image.tokens_kept)
        # What follows an image of Gemma 3 is of an image to `generate`, which without a cache lets it see both ways.
        if name != "gemma3" and all(step.method.exact_cache for step in Plan.of(plan).decoder_steps):
            assert answers(model, inputs, use_cache=False) == written


@pytest.mark.parametrize("name", SPECIMENS)
def test_an_image_that_answers_is_answered_as_with_masks(name: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), ending_in_an_image(specimen)
    with foveate.compress(model, "random-decoder:3@1") as handle:
        found = logits(model, inputs)[:, -1]
        (image,) = handle.report().images
    token = family_of(model).placeholder(family_of(model).core(model), "image")
    dropped = inputs["input_ids"] == token
    dropped[0, dropped[0].nonzero().flatten()[image.layers[0].indices]] = False
    torch.testing.assert_close(found, masked(specimen, inputs, dropped)[:, -1], atol=2e-4, rtol=2e-4)


def test_tokens_before_answers_stay_in_training() -> None:
    """Labels that begin right after an image make its last token one that answers, in the middle of a sequence."""
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS, side="right")
    image = inputs["input_ids"] == family_of(model).placeholder(family_of(model).core(model), "image")
    labels = inputs["input_ids"].masked_fill(image | (inputs["attention_mask"] == 0), -100)
    labels[:, 0] = -100
    with foveate.compress(model, "fastv:2@2 + vtw@4") as handle:
        loss = model(**inputs, labels=labels).loss
        for own in handle.report().images:
            assert [layer.tokens_kept for layer in own.layers] == [2, 1]
            assert all(layer.indices[-1] == own.tokens_in - 1 for layer in own.layers)
    assert bool(loss.isfinite())


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "qwen3-vl", "gemma3", "llava-uhd"])
@pytest.mark.parametrize("plan", ["fastv:3@1", "pyramiddrop:3@1"])
def test_generation_in_other_ways(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS)
    with foveate.compress(model, plan):
        plain = answers(model, inputs)
        assert answers(model, inputs, cache_implementation="static") == plain
        beams = answers(model, inputs, num_beams=2)
        assert answers(model, inputs, num_beams=2, use_cache=False) == beams
        assert answers(model, inputs, num_return_sequences=2, num_beams=2)[::2] == beams


@pytest.mark.parametrize("name", SPECIMENS)
def test_later_layers_remember_less(name: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS[:1])
    cache = DynamicCache(config=model.config.get_text_config())
    with foveate.compress(model, "fastv:3@1") as handle, torch.no_grad():
        model(**inputs, **compat.cache_argument(cache), use_cache=True)
        report = handle.report()
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    (image,) = report.images
    total = inputs["input_ids"].shape[1]
    assert lengths[0] == min(total, lengths[0])
    assert all(length <= total - image.tokens_in + 3 for length in lengths[1:])
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert report.kv_bytes == held
    assert "from layer 1" in str(report)
    assert report.as_json()["images"][0]["layers"][0]["tokens_kept"] == 3


def deep(kind: str) -> tuple[Specimen, Any]:
    """A model with six layers in place of two, so that there are stages."""
    specimen = zoo()[kind]
    model = specimen.make()
    torch.manual_seed(1)
    config = model.config
    config.get_text_config().num_hidden_layers = 6
    if getattr(config.get_text_config(), "layer_types", None):
        config.get_text_config().layer_types = [config.get_text_config().layer_types[0]] * 6
    model = type(model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return specimen, model


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("plan", ["pyramiddrop:50%@2,4", "fastv:6@2 + pyramiddrop:50%@3,5", "uniform:8 + fastv:3@2"])
def test_stages(kind: str, plan: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS)
    with foveate.compress(model, plan) as handle:
        written = answers(model, inputs)
        counts = [[layer.tokens_kept for layer in image.layers] for image in handle.report().images]
        origins = [[set(layer.indices.tolist()) for layer in image.layers] for image in handle.report().images]
        assert answers(model, inputs, use_cache=False) == written
        assert answers(model, specimen.prompts(model, ROWS[:1]))[0] == written[0]
    for kept, origin in zip(counts, origins, strict=True):
        assert kept == sorted(kept, reverse=True)
        assert all(later <= earlier for earlier, later in itertools.pairwise(origin))


def counted(kind: str, mask: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
    """Positions of the new tokens, which models with M-RoPE must be told where a cache goes on."""
    if kind == "llava":
        return {}
    length = inputs["input_ids"].shape[1]
    return {"position_ids": torch.arange(mask.shape[1] - length, mask.shape[1]).expand(3, 1, -1)}


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("plan", ["fastv:3@2", "pyramiddrop:50%@2,4"])
def test_a_conversation_goes_on_with_another_image(kind: str, plan: str) -> None:
    """The second turn over the first one's cache is what one long pass with the same tokens would be."""
    specimen, model = deep(kind)
    first, second = (specimen.prompts(model, ((size,),), seed=seed) for size, seed in (((3, 4), 0), ((4, 3), 5)))
    cache = DynamicCache(config=model.config.get_text_config())
    with foveate.compress(model, plan) as handle, torch.no_grad():
        model(**first, **compat.cache_argument(cache), use_cache=True)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        outer = cache.get_seq_length()
        assert outer == first["input_ids"].shape[1]
        mask = torch.ones(1, outer + second["input_ids"].shape[1], dtype=torch.int64)
        out = model(**{**second, "attention_mask": mask}, **counted(kind, mask, second), **compat.cache_argument(cache))
        images = handle.report().images
        after = [layer.keys.shape[2] for layer in cache.layers]
        kept = [image.layers[-1].tokens_kept for image in images]
        assert len(images) == 1
        assert after[-1] - lengths[-1] == second["input_ids"].shape[1] - images[0].tokens_in + kept[0]
        # A word more, with and without the cache.
        word = torch.tensor([[7]])
        longer = torch.ones(1, mask.shape[1] + 1, dtype=torch.int64)
        following = {"input_ids": word, "attention_mask": longer, **counted(kind, longer, {"input_ids": word})}
        step = model(**following, **compat.cache_argument(cache))
        cache.crop(-1)
        again = model(**following, **compat.cache_argument(cache))
    torch.testing.assert_close(step.logits, again.logits)
    assert bool(out.logits.isfinite().all())


def same_gradients(model: Any, inputs: dict[str, Any], plan: str) -> None:
    """Loss and gradients with a plan are the same with gradient checkpointing and without."""
    model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint(model)
        model.zero_grad()
        with foveate.compress(model, plan):
            loss = model(**inputs).loss
            loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (plain, gradients), (loss, others) = found
    torch.testing.assert_close(loss, plain)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_gradients_reach_what_stays_and_checkpointing_changes_nothing() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS, side="right")
    labels = inputs["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    labels[inputs["attention_mask"] == 0] = -100
    labels[labels >= 100] = -100
    same_gradients(model, {**inputs, "labels": labels}, "pyramiddrop:50%@2,4")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_says_the_same(implementation: str) -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS)
    with foveate.compress(model, "pyramiddrop:50%@2,4"):
        expected = logits(model, inputs)
        model.set_attn_implementation(implementation)
        found = logits(model, inputs)
    torch.testing.assert_close(found[:, -4:], expected[:, -4:], atol=1e-4, rtol=1e-4)


def test_a_restored_model_is_as_it_was() -> None:
    specimen, model = deep("qwen3-vl")
    inputs = specimen.prompts(model, ROWS)
    before = logits(model, inputs)
    names = {module: (sorted(vars(module)), len(module._forward_pre_hooks)) for module in model.modules()}
    with foveate.compress(model, "fastv:3@2 + pyramiddrop:50%@4"):
        assert not torch.equal(logits(model, inputs)[:, -1], before[:, -1])
    assert torch.equal(logits(model, inputs), before)
    assert names == {module: (sorted(vars(module)), len(module._forward_pre_hooks)) for module in model.modules()}


def test_static_caches_of_windows_are_refused() -> None:
    specimen, model = deep("gemma3")  # all of its layers have a window
    inputs = specimen.prompts(model, ROWS)
    with foveate.compress(model, "fastv:3@2"):
        assert len(answers(model, inputs)) == len(ROWS)
        with pytest.raises(
            FoveateError, match="layer 2, which has a sliding window of 12 tokens; a static cache cannot hold fewer"
        ):
            answers(model, inputs, cache_implementation="static")


@pytest.mark.parametrize(
    ("name", "plan", "code"),
    [
        ("llava", "fastv:3@2", "no-such-layer"),
        ("llava", "fastv:3@0", "no-such-layer"),
        ("llava", "fastv:3@1 + pyramiddrop:2@1", "same-layer"),
        ("llava", "fastv:3@1 + divprune:2", "wrong-order"),
        ("qwen3.5", "fastv:3@1", "needs-decoder-layers"),
    ],
)
def test_what_cannot_be_is_refused(name: str, plan: str, code: str) -> None:
    with refused(code):
        foveate.compress(zoo()[name].model(), plan)


@pytest.mark.parametrize(("plan", "words"), [("vtw:3@1", "vtw takes no budget"), ("fastv@1", "fastv needs a budget")])
def test_budgets_are_those_that_a_method_takes(plan: str, words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        foveate.compress(zoo()["llava"].model(), plan)
