"""Plans on models without an output layer for text: base models, and models for retrieval and classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    ColPaliConfig,
    ColPaliForRetrieval,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    Gemma3ForSequenceClassification,
    Qwen3_5ForSequenceClassification,
)

import foveate
from foveate.families import family_of
from foveate.runtime import handle_of
from foveate.runtime.task_heads import last_kept_positions
from foveate.testing.live import logits
from tests.families.zoo import zoo
from tests.runtime.matrix import inside_pairs
from tests.runtime.test_promises import ROWS

PAIRS = [*((name, "divprune:3") for name in sorted(zoo())), *inside_pairs()]


@pytest.mark.parametrize(("name", "plan"), PAIRS)
def test_a_base_model_is_compressed_as_the_whole_one(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS)
    core = family_of(model).core(model)
    assert core is not model
    assert family_of(core).core(core) is core
    with foveate.compress(model, plan) as handle:
        expected, report = logits(model, inputs), handle.report()
    with foveate.compress(core, plan) as handle, torch.no_grad():
        assert handle_of(core) is handle_of(model) is handle
        hidden = core(**inputs).last_hidden_state
        assert handle.report().tokens_kept == report.tokens_kept
    with torch.no_grad():
        found = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(found[..., :100], expected[..., :100])
    assert handle_of(core) is None


def retrieval(name: str) -> Any:
    config = copy.deepcopy(zoo()[name].model().config)
    torch.manual_seed(0)
    if name == "paligemma":
        model: Any = ColPaliForRetrieval(ColPaliConfig(vlm_config=config, embedding_dim=6))
    else:
        model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=config, embedding_dim=6))
    model.vlm.load_state_dict(zoo()[name].model().model.state_dict())
    return model.eval()


def one_each(name: str) -> dict[str, Any]:
    """Prompts with one image each, as processors for retrieval write them: pixels filled up to the largest image."""
    inputs = zoo()[name].prompts(zoo()[name].model(), (((3, 4),), ((4, 5),)))
    if name == "qwen2-vl":
        del inputs["mm_token_type_ids"]
        parts = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(dim=1).tolist())
        inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    return inputs


@pytest.mark.parametrize("plan", ["divprune:3", "fastv:3@1"])
@pytest.mark.parametrize("name", ["paligemma", "qwen2-vl"])
def test_retrieval_gives_the_embeddings_of_what_stays(name: str, plan: str) -> None:
    model, inputs = retrieval(name), one_each(name)
    with torch.no_grad():
        whole = model(**inputs).embeddings
        with foveate.compress(model, plan) as handle:
            found = model(**inputs).embeddings
            images = handle.report().images
            # What the core itself gives, with ids and pixels where the outer model hands it embeddings.
            seen: list[Tensor] = []
            hook = model.embedding_proj_layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            model(**inputs)
            hook.remove()
        torch.testing.assert_close(
            model(**inputs).embeddings, whole, equal_nan=True
        )  # padding of the left is no number
    assert seen[0].shape[:2] == whole.shape[:2]
    counts = inputs["attention_mask"].sum(dim=1).tolist()
    kept = [image.layers[-1].tokens_kept if image.layers else image.tokens_kept for image in images]
    lengths = [count - image.tokens_in + own for count, image, own in zip(counts, images, kept, strict=True)]
    assert kept == [3, 3]
    assert found.shape[1] == max(lengths) < whole.shape[1]
    assert (found.norm(dim=-1) > 0).sum(dim=1).tolist() == lengths  # those of padding are 0
    torch.testing.assert_close(found[:, -1].norm(dim=-1), torch.ones(2))
    with foveate.compress(model, "divprune:100%"), torch.no_grad():
        torch.testing.assert_close(model(**inputs).embeddings, whole, equal_nan=True)


def test_gradients_of_retrieval_are_numbers() -> None:
    model, inputs = retrieval("paligemma").train(), one_each("paligemma")
    torch.nn.init.zeros_(model.embedding_proj_layer.bias)
    with foveate.compress(model, "divprune:3"):
        model(**inputs).embeddings[:, -1].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "kind"), [("gemma3", Gemma3ForSequenceClassification), ("qwen3.5", Qwen3_5ForSequenceClassification)]
)
def test_classes_are_read_off_the_last_token(name: str, kind: Any, side: str) -> None:
    specimen = zoo()[name]
    config = copy.deepcopy(specimen.model().config)
    config.num_labels, config.get_text_config().pad_token_id, config.pad_token_id = 5, 0, 0
    torch.manual_seed(0)
    model = kind(config).eval()
    inputs = specimen.prompts(specimen.model(), ROWS, side=side)
    with torch.no_grad():
        whole = model(**inputs).logits
        with foveate.compress(model, "divprune:3"):
            found = model(**inputs, labels=torch.tensor([0, 1, 2]))
            core = model.model
            head = model.score
        with foveate.compress(core, "divprune:3"):
            hidden = core(**inputs).last_hidden_state
    ends = (inputs["attention_mask"].shape[1] - inputs["attention_mask"].flip(1).argmax(dim=1)).tolist()
    removed = inputs["attention_mask"].shape[1] - hidden.shape[1]
    expected = torch.stack([head(hidden[row, end - 1 - removed]) for row, end in enumerate(ends)])
    torch.testing.assert_close(found.logits, expected)
    assert found.logits.shape == whole.shape
    assert not torch.allclose(found.logits, whole)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2])))


def test_every_column_has_the_place_of_the_last_that_stayed() -> None:
    columns = torch.tensor([[-1, 1, 4], [0, 2, 3]])
    assert last_kept_positions(columns, 6).tolist() == [[1, 1, 1, 1, 2, 2], [0, 0, 1, 2, 2, 2]]
