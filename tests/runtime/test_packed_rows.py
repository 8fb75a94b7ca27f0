"""Samples packed into one row, and masks of pairs: nobody sees another sample, and what a mask says is obeyed."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DataCollatorWithFlattening, DynamicCache
from transformers.masking_utils import flash_attention_mask

import foveate
from foveate import FoveateError, compat
from foveate.core import sequence
from foveate.core.attention import Attention
from foveate.families import family_of
from tests.families.reference import attention
from tests.families.zoo import IMAGE, Specimen, zoo
from tests.runtime.matrix import covering, raster_pairs, steps
from tests.runtime.packing import SAMPLES, alone, packed
from tests.runtime.test_decoder_hooks import PLANS, SPECIMENS
from tests.runtime.test_promises import compress

#: Their linear layers read a row as one sample, without a plan too.
LINEAR = ("minicpm-v-4.6", "qwen3.5")


def logits(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, use_cache=False, **options).logits


def text_of(model: Any) -> Any:
    return family_of(model).text(family_of(model).core(model))


def samples_of(specimen: Specimen) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    own = [alone(specimen, number) for number in range(len(SAMPLES))]
    return own, packed(specimen, own)


@pytest.mark.parametrize(
    ("name", "plan"),
    [*covering([n for n in sorted(zoo()) if n not in LINEAR], steps()), *covering(SPECIMENS, PLANS), *raster_pairs()],
)
def test_a_packed_row_is_its_samples(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    samples, row = samples_of(specimen)
    with compress(specimen, plan):
        expected = torch.cat([logits(model, sample) for sample in samples], dim=1)
        torch.testing.assert_close(logits(model, row), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["gemma3", "llava", "paligemma", "qwen3-vl"])
@pytest.mark.parametrize("plan", ["random:3", "fastv:3@1"])
def test_with_eager_attention_too(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    samples, row = samples_of(specimen)
    with attention(model, "eager"), compress(specimen, plan):
        expected = torch.cat([logits(model, sample) for sample in samples], dim=1)
        torch.testing.assert_close(logits(model, row), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("plan", ["cdpruner:3", "fastv:3@1", "zipvl@1", "cmai@1", "corematching@1"])
def test_rows_that_lose_different_numbers_of_tokens(plan: str, kind: str) -> None:
    """A packed row beside a row of text, from which nothing goes: then the packed one is padded."""
    specimen = zoo()["llava"]
    model = specimen.model()
    samples, row = samples_of(specimen)
    length = row["input_ids"].shape[1]
    text = {"input_ids": torch.arange(length)[None] % 97 + 1, "position_ids": torch.arange(length)[None]}
    both = {name: torch.cat([row[name], text[name]]) for name in text} | {"pixel_values": row["pixel_values"]}
    with attention(model, kind), compress(specimen, plan):
        expected = torch.cat([logits(model, sample) for sample in samples], dim=1)[0]
        found = logits(model, both)
        torch.testing.assert_close(found[1], logits(model, text)[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[0, -len(expected) :], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("plan", ["uniform:3", "fastv:3@1"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_positions_begin_anew_and_gaps_close_within_a_sample(
    plan: str, positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen = zoo()["llava"]
    model = specimen.model()
    samples, row = samples_of(specimen)
    seen: list[Tensor] = []
    forward = text_of(model).forward
    monkeypatch.setattr(
        text_of(model), "forward", lambda **kwargs: [seen.append(kwargs["position_ids"]), forward(**kwargs)][1]
    )
    with foveate.compress(model, plan, positions=positions):
        expected = torch.cat([logits(model, sample) for sample in samples], dim=1)
        seen.clear()
        found = logits(model, row)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    if plan == "uniform:3":
        (ids,) = seen
        begins = (ids[0] == 0).nonzero().flatten().tolist()
        assert len(begins) == len(SAMPLES)
        if positions == "contiguous":
            lengths = [len(part) for part in torch.tensor_split(ids[0], begins[1:])]
            assert ids[0].tolist() == [place for length in lengths for place in range(length)]


@pytest.mark.parametrize("plan", ["cdpruner:3", "fastv:3@1", "sparsevlm:3@1", "corematching@1"])
def test_labels_tell_where_each_sample_asks(plan: str) -> None:
    specimen = zoo()["llava"]
    model = specimen.model()
    samples, row = samples_of(specimen)
    for sample in samples:
        sample["labels"] = sample["input_ids"].clone()
        sample["labels"][:, :-3] = -100
    row["labels"] = torch.cat([sample["labels"] for sample in samples], dim=1)
    with torch.no_grad(), compress(specimen, plan):
        losses = [model(**sample, use_cache=False).loss for sample in samples]
        out = model(**row, use_cache=False)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)


def test_first_words_are_predicted_by_their_own_sample() -> None:
    """A sample that begins with an image: its last token answers, and stays where all others go."""
    model = zoo()["llava"].model()
    first, second = alone(zoo()["llava"], 0), alone(zoo()["llava"], 2)
    place = int((second["input_ids"][0] == IMAGE).nonzero()[0])
    second = {k: v[:, place:] if v.shape == second["input_ids"].shape else v for k, v in second.items()}
    second["position_ids"] = torch.arange(second["input_ids"].shape[1])[None]
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    row = {
        "input_ids": ids,
        "labels": ids.masked_fill(ids == IMAGE, -100),
        "position_ids": torch.cat([first["position_ids"], second["position_ids"]], dim=1),
        "pixel_values": torch.cat([first["pixel_values"], second["pixel_values"]]),
    }
    begins = first["input_ids"].shape[1] + 16
    with torch.no_grad(), foveate.compress(model, "vtw@1"):
        short = model(**row, use_cache=False)
    with torch.no_grad(), foveate.compress(model, "vtw@1", align_logits=True):
        long = model(**row, use_cache=False)
    stays = short.kept_positions[0].tolist()
    assert begins - 1 in stays and begins - 2 not in stays
    assert short.labels[0, stays.index(begins)] == ids[0, begins]
    torch.testing.assert_close(long.loss, short.loss)


def test_labels_after_a_gap_between_samples_do_not_count() -> None:
    """What is left of another sample predicts nothing; neighbours that always stood side by side stay as they were."""
    blocks = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    labels = torch.arange(7)[None]
    gap, none = torch.tensor([[0, 1, 5, 6]]), torch.tensor([[1, 2, 3, 6]])
    assert sequence.shorten_labels(labels, gap, blocks).tolist() == [[0, 1, -100, 6]]
    assert sequence.shorten_labels(labels, none, blocks).tolist() == [[1, 2, 3, 6]]
    assert sequence.labels_that_count(labels, gap, blocks).tolist() == [[-100, 1, -100, -100, -100, -100, 6]]
    assert sequence.last_kept(gap, 7, blocks).tolist() == [[0, 1, 1, -1, -1, 2, 3]]
    assert sequence.shorten_shifted(torch.tensor([[1, 2, 3, 4, 5, 6, 9]]), gap, blocks).tolist() == [[1, -100, 6, 9]]


@pytest.mark.parametrize("plan", [None, "uniform:3", "fastv:3@1"])
def test_the_collator_of_transformers(plan: str | None) -> None:
    specimen = zoo()["llava"]
    model = specimen.model()
    samples, row = samples_of(specimen)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    made = collate([{"input_ids": sample["input_ids"][0].tolist()} for sample in samples])
    assert {"cu_seq_lens_q", "max_length_k", "seq_idx", "position_ids"} <= made.keys()
    with foveate.compress(model, plan or "uniform:100%"), torch.no_grad():
        out = model(**made, pixel_values=row["pixel_values"], use_cache=False)
        losses, words = [], []
        for sample in samples:
            labels = sample["input_ids"].clone()
            labels[:, 0] = -100
            losses.append(model(**sample, labels=labels, use_cache=False))
            words.append(int((losses[-1].labels[:, 1:] >= 0).sum()))
    expected = sum(one.loss * count for one, count in zip(losses, words, strict=True)) / sum(words)
    torch.testing.assert_close(out.loss, expected, atol=1e-5, rtol=1e-4)


def edges_alone(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention that knows samples as flash attention does, by the edges that it is told, and no mask of pairs."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    assert attention_mask is None
    edges = options.get("cu_seq_lens_q")
    edges = [0, query.shape[2]] if edges is None else edges.tolist()
    assert edges[-1] == query.shape[2]
    parts = []
    for start, stop in itertools.pairwise(edges):
        own = [states[:, :, start:stop] for states in (query, key, value)]
        scale = options.get("scaling")
        parts.append(F.scaled_dot_product_attention(own[0], own[1], own[2], is_causal=True, scale=scale))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("plan", ["uniform:3", "fastv:3@1", "pyramiddrop:3@1"])
def test_edges_for_flash_attention_follow_the_samples(plan: str, told: bool) -> None:
    """On a machine without it, a function stands in that reads the same arguments; samples are told it or follow."""
    specimen = zoo()["llava"]
    model = copy.deepcopy(specimen.model())
    samples, row = samples_of(specimen)
    AttentionInterface.register("flash_by_edges", edges_alone)
    AttentionMaskInterface.register("flash_by_edges", flash_attention_mask)
    with foveate.compress(model, plan):
        expected = torch.cat([logits(model, sample) for sample in samples], dim=1)
    edges = torch.tensor([0, *(s["input_ids"].shape[1] for s in samples)]).cumsum(0).int()
    if told:
        row |= {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": 40, "max_length_k": 40}
    model.model.language_model.config._attn_implementation = "flash_by_edges"
    with foveate.compress(model, plan):
        found = logits(model, row)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def block_mask(samples: list[dict[str, Any]]) -> Tensor:
    return torch.block_diag(
        *(torch.ones(s["input_ids"].shape[1], s["input_ids"].shape[1]).tril() for s in samples)
    ).bool()


def added(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    "plan", ["cdpruner:3", "uniform:3", "fastv:3@1", "visiondrop:3@1", "zipvl@1", "corematching@1"]
)
@pytest.mark.parametrize("form", ["bool", "added", "dict"])
def test_masks_that_keep_samples_apart(plan: str, form: str) -> None:
    specimen = zoo()["qwen2-vl" if form == "dict" else "llava"]
    model = specimen.model()
    samples, row = samples_of(specimen)
    mask: Any = block_mask(samples)[None, None]
    mask = added(mask) if form == "added" else mask
    row["attention_mask"] = {"full_attention": mask} if form == "dict" else mask
    with compress(specimen, plan):
        expected = torch.cat([logits(model, sample) for sample in samples], dim=1)
        torch.testing.assert_close(logits(model, row), expected, atol=1e-4, rtol=1e-3)


def holes(length: int, seed: int = 0) -> Tensor:
    """A mask in which each token sees itself and half of those before it."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.rand(length, length, generator=generator) < 0.5
    return (some.tril() | torch.eye(length, dtype=torch.bool))[None, None]


def prefix(length: int) -> Tensor:
    """A mask in which the first half sees itself both ways."""
    mask = torch.ones(length, length).tril().bool()
    mask[: length // 2, : length // 2] = True
    return mask[None, None]


@pytest.mark.parametrize("make", [holes, prefix])
@pytest.mark.parametrize("name", ["gemma3", "llava", "mistral3", "paligemma", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("plan", ["uniform:3", "random-decoder:3@1"])
def test_any_mask_of_pairs_is_obeyed(name: str, make: Any, plan: str) -> None:
    """What is left out is what nobody sees from there on; everything else sees what the mask lets it."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = alone(specimen, 1)
    length = inputs["input_ids"].shape[1]
    mask = inputs["attention_mask"] = make(length)
    with foveate.compress(model, plan, positions="original") as handle:
        out = model(**inputs, use_cache=False)
        images = handle.report().images
    columns = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    dropped = torch.zeros(length, dtype=torch.bool)
    for image, own in zip(images, columns.split([image.tokens_in for image in images]), strict=True):
        gone = torch.ones(len(own), dtype=torch.bool)
        gone[image.layers[0].indices if image.layers else image.selection.indices] = False
        dropped[own[gone]] = True
    first = 1 if "@" in plan else 0

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        own = (mask & ~dropped) | torch.eye(length, dtype=torch.bool)
        return args, {**kwargs, "attention_mask": own}

    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in text_of(model).layers[first:]]
    expected = logits(model, inputs)
    for own in handles:
        own.remove()
    assert torch.equal(out.kept_positions[0], (~dropped).nonzero().flatten())
    torch.testing.assert_close(out.logits[0], expected[0, ~dropped], atol=1e-4, rtol=1e-3)


def test_attention_under_a_mask_of_pairs() -> None:
    """What methods ask of a layer: a softmax over what the mask lets each row see."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads, 6, 4, generator=generator) for heads in (4, 2))
    allowed = holes(6)[0, 0]
    attention_ = Attention(query, key, 0.5, None, allowed)
    rows, places = torch.tensor([2, 5]), torch.tensor([1, 2, 4])
    for number, row in enumerate(rows.tolist()):
        for head in range(4):
            logits_ = [float(query[head, row] @ key[head // 2, k]) * 0.5 for k in range(6)]
            weights = torch.tensor([torch.tensor(v).exp() if allowed[row, k] else 0.0 for k, v in enumerate(logits_)])
            torch.testing.assert_close(attention_.rows(rows)[head, number], weights / weights.sum())
    assert attention_.visible(rows).tolist() == allowed[rows].sum(dim=1).tolist()
    assert attention_.visible(rows, places).tolist() == allowed[rows][:, places].sum(dim=1).tolist()


@pytest.mark.parametrize("plan", ["uniform:3", "random-decoder:3@1"])
def test_masks_of_pairs_over_a_cache(plan: str) -> None:
    """A prompt, and words after it one by one, with masks of pairs: as in one pass."""
    specimen = zoo()["llava"]
    model = specimen.model()
    inputs = alone(specimen, 1)
    del inputs["position_ids"]
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    mask = holes(length)
    with torch.no_grad(), foveate.compress(model, plan):
        whole = model(**{**inputs, "attention_mask": mask}, use_cache=False).logits
        cache = DynamicCache()
        cut = length - 2
        inputs |= {"input_ids": ids[:, :cut], "attention_mask": mask[:, :, :cut, :cut]}
        steps_ = [model(**inputs, **compat.cache_argument(cache)).logits]
        for place in range(cut, length):
            own = {"input_ids": ids[:, place : place + 1], "attention_mask": mask[:, :, place : place + 1, : place + 1]}
            steps_.append(model(**own, **compat.cache_argument(cache)).logits)
    torch.testing.assert_close(torch.cat(steps_, dim=1), whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2-vl"])
def test_masks_that_only_say_what_is_padding_are_made_anew(name: str, side: str) -> None:
    """As `generate` makes them for a cache of fixed size; the shorter sequence sees through windows as it is."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, SAMPLES, side)
    seen: dict[str, Any] = {}
    handle = text_of(model).register_forward_pre_hook(lambda m, a, kwargs: seen.update(kwargs), with_kwargs=True)
    logits(model, inputs)
    handle.remove()
    length = inputs["input_ids"].shape[1]
    if seen.get("position_ids") is not None:  # which the model does not work out from masks of pairs
        inputs["position_ids"] = seen["position_ids"]
    given = seen["attention_mask"]
    if not isinstance(given, dict):
        given = (inputs["attention_mask"][:, None, None] > 0) & torch.ones(length, length, dtype=torch.bool).tril()
    with torch.no_grad(), foveate.compress(model, "uniform:3"):
        expected = model(**inputs, use_cache=False)
        found = model(**{**inputs, "attention_mask": given}, use_cache=False)
    assert torch.equal(found.kept_positions, expected.kept_positions)
    columns = found.kept_positions
    real = (columns >= 0) & (inputs["attention_mask"].gather(1, columns.clamp(min=0)) > 0)
    torch.testing.assert_close(found.logits[real], expected.logits[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("least", [-1e4, -1e9, torch.finfo(torch.float16).min, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plan", ["cdpruner:3", "fastv:3@1", "cmai@1", "zipvl@1"])
def test_numbers_that_hide_are_those_of_any_author(plan: str, dtype: torch.dtype, least: float) -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), SAMPLES)
    mask = inputs["attention_mask"] > 0
    length = mask.shape[1]
    allowed = (torch.ones(length, length).tril() > 0) & mask[:, None] | ~mask[..., None]
    added = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, least)[:, None]
    with torch.no_grad(), foveate.compress(model, plan):
        expected = model(**inputs, use_cache=False)
        found = model(**{**inputs, "attention_mask": added}, use_cache=False)
    columns = expected.kept_positions
    assert torch.equal(found.kept_positions, columns)
    real = (columns >= 0) & mask.gather(1, columns.clamp(min=0))
    torch.testing.assert_close(found.logits[real], expected.logits[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("plan", ["cdpruner:3", "fastv:3@1"])
@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_a_mask_that_is_longer_is_read_from_its_first_column(name: str, plan: str) -> None:
    """As models do; a mask may be as long as a static cache."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), SAMPLES)
    longer = F.pad(inputs["attention_mask"], (0, 9))
    with torch.no_grad(), foveate.compress(model, plan):
        expected = model(**inputs)
        found = model(**{**inputs, "attention_mask": longer})
    assert torch.equal(found.kept_positions, expected.kept_positions)
    torch.testing.assert_close(found.logits, expected.logits)


def refused(specimen: Specimen, inputs: dict[str, Any], match: str, plan: str = "uniform:3") -> None:
    with foveate.compress(specimen.model(), plan), pytest.raises(FoveateError, match=match):
        logits(specimen.model(), inputs)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_are_refused(name: str) -> None:
    _, row = samples_of(zoo()[name])
    refused(zoo()[name], row, "linear-attention layers of .* read a row as one causal sample")


@pytest.mark.parametrize("name", ["glm-4v", "qwen2-vl", "qwen2.5-vl"])
def test_positions_that_a_language_model_does_not_tell_samples_by_are_refused(name: str) -> None:
    _, row = samples_of(zoo()[name])
    for own in (row["position_ids"][0], row["position_ids"][1:]):
        refused(zoo()[name], {**row, "position_ids": own}, r"position_ids of \(4, batch, length\)")


def test_edges_that_attention_does_not_read_are_refused() -> None:
    samples, row = samples_of(zoo()["llava"])
    edges = torch.tensor([0, *(s["input_ids"].shape[1] for s in samples)]).cumsum(0).int()
    told = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": 40, "max_length_k": 40}
    expected = torch.cat([sample["position_ids"] for sample in samples], dim=1)
    through = torch.arange(expected.shape[1])[None]
    refused(zoo()["llava"], {**row, **told, "position_ids": through}, "which sdpa attention ignores")
    model = zoo()["llava"].model()
    with foveate.compress(model, "uniform:3"):
        assert torch.equal(logits(model, {**row, **told}), logits(model, row))


def test_other_refusals() -> None:
    specimen = zoo()["llava"]
    inputs = alone(specimen, 0)
    length = inputs["input_ids"].shape[1]
    refused(specimen, {**inputs, "attention_mask": torch.ones(1, length, length)}, "mask of shape .* cannot be pruned")
    refused(specimen, {**inputs, "bias_ids": torch.ones(1, length)}, "gets bias_ids of shape .* leave it out")
    cut = inputs["position_ids"].clone()
    middle = int((inputs["input_ids"][0] == IMAGE).nonzero()[4])
    cut[:, middle:] -= middle
    refused(specimen, {**inputs, "position_ids": cut}, "an image lies in two of the samples")
