"""What outputs say under a plan: which columns they have, logits of all columns, and the loss of the model itself."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import concatenate, convert_outputs_to_fp32
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers.trainer_pt_utils import LabelSmoother

import foveate
from foveate import FoveateError, compat
from foveate.families import family_of
from tests.families.reference import attention
from tests.families.zoo import END, IMAGE, Specimen, zoo
from tests.runtime.experts import ASKING, COEFFICIENT, NAMES, model_with_experts
from tests.runtime.matrix import covering, steps
from tests.runtime.test_decoder_hooks import PLANS, SPECIMENS
from tests.runtime.test_promises import ROWS, compress

ALL = [*covering(sorted(zoo()), steps()), *covering(SPECIMENS, PLANS)]


def inputs_of(specimen: Specimen, side: str = "left", model: Any = None) -> dict[str, Any]:
    """Prompts with labels for all their text but the first word of each, which nothing predicts."""
    inputs = specimen.prompts(model or specimen.model(), ROWS, side)
    real = inputs["attention_mask"] > 0
    learned = real & (inputs["input_ids"] < 100) & (real.cumsum(dim=1) > 1)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(~learned, -100)}


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "plan"), ALL)
def test_outputs_say_which_columns_they_have_or_have_all(name: str, plan: str, side: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), inputs_of(specimen, side)
    labels = inputs["labels"]
    with torch.no_grad():
        with compress(specimen, plan):
            short = model(**inputs, use_cache=False)
        with foveate.compress(model, plan, align_logits=True):
            long = model(**inputs, use_cache=False)
    columns = short.kept_positions
    assert columns.shape == short.labels.shape == short.logits.shape[:2]
    assert long.logits.shape[:2] == labels.shape
    assert {"kept_positions", "labels"}.isdisjoint(long)
    for row, own in enumerate(columns):
        stays = own[own >= 0]
        text = ((labels[row] >= 0).nonzero().flatten()).tolist()
        assert stays.tolist() == sorted(set(stays.tolist())) and set(text) <= set(stays.tolist())
        place = len(own) - len(stays)
        assert torch.equal(short.labels[row, place + 1 :], labels[row, stays[1:]])
        # Column by column: the last one before it that stayed.
        for column in range(labels.shape[1]):
            before = (stays <= column).sum()
            expected = short.logits[row, place + before - 1] if before else model.lm_head(torch.zeros(32))
            torch.testing.assert_close(long.logits[row, column], expected, atol=1e-4, rtol=1e-4)
    losses = [short.loss, long.loss, mean_loss(short.logits, short.labels), mean_loss(long.logits, labels)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(zoo()))
@pytest.mark.parametrize("plan", ["uniform:100%", "random-decoder:100%@1"])
def test_keeping_everything_gives_loss_and_gradient_of_the_model(name: str, plan: str) -> None:
    if "@" in plan and name not in SPECIMENS:
        pytest.skip("its language model cannot be shortened inside")
    specimen = zoo()[name]
    model, inputs = specimen.model(), inputs_of(specimen)

    def learned() -> tuple[Tensor, list[Tensor]]:
        loss = model(**inputs, num_items_in_batch=7).loss
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return loss.detach(), [grad for grad in found if grad is not None]

    expected, gradients = learned()
    with foveate.compress(model, plan):
        loss, own = learned()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert len(own) == len(gradients)
    for grad, before in zip(own, gradients, strict=True):
        torch.testing.assert_close(grad, before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_experts_are_balanced_over_what_was_read(
    name: str, masked: bool, align: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balancing loss of the language model called by hand with what stays, beside that of the words."""
    specimen, model = zoo()[name], model_with_experts(name)
    inputs = inputs_of(specimen, model=model)
    if not masked:  # rows lose different numbers of tokens, and padding for that must not count
        inputs = specimen.prompts(model, ROWS[:1])
        ids = inputs["input_ids"]
        inputs["labels"] = ids.masked_fill((ids >= 100) | (torch.arange(ids.shape[1]) == 0), -100)
        del inputs["attention_mask"]
    before = model(**inputs, **ASKING, use_cache=False)
    with foveate.compress(model, "uniform:100%"):
        whole = model(**inputs, **ASKING, use_cache=False)
    assert torch.equal(whole.loss, before.loss) and torch.equal(whole.aux_loss, before.aux_loss)
    called: dict[str, Any] = {}
    text: Any = family_of(model).text(family_of(model).core(model))
    forward = text.forward

    def look(**kwargs: Any) -> Any:
        called.update({k: v for k, v in kwargs.items() if v is not None})
        return forward(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(text, "forward", look)
        with torch.no_grad(), foveate.compress(model, "uniform:3", align_logits=align):
            out = model(**inputs, **ASKING, use_cache=False)
            bare = model(**{k: v for k, v in inputs.items() if k != "labels"}, **ASKING, use_cache=False)
    columns = out.kept_positions
    assert (columns >= 0).all() != masked
    with torch.no_grad():
        direct = text(**called)
    mask = inputs.get("attention_mask")
    real = (columns >= 0).long() if mask is None else mask.gather(1, columns.clamp(min=0)) * (columns >= 0)
    home: Any = sys.modules[type(model).__module__]
    aux = home.load_balancing_loss_func(direct.router_logits, 4, 2, real)
    torch.testing.assert_close(out.aux_loss, aux)
    torch.testing.assert_close(bare.aux_loss, aux)
    words = out.labels if not align else inputs["labels"]
    torch.testing.assert_close(out.loss, mean_loss(out.logits, words) + COEFFICIENT * aux)
    assert len(out.router_logits) == len(text.layers)
    assert all(torch.equal(own, other) for own, other in zip(out.router_logits, direct.router_logits, strict=True))


@pytest.mark.parametrize("plan", ["cdpruner:3", "fastv:3@1"])
@pytest.mark.parametrize("align", [False, True])
def test_labels_that_were_shifted_before(plan: str, align: bool) -> None:
    """As sequence parallelism gives them: each label stands where it is predicted."""
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    shifted = F.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    with torch.no_grad(), foveate.compress(model, plan, align_logits=align):
        expected = model(**inputs).loss
        found = model(**inputs, shift_labels=shifted).loss
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("plan", ["uniform:3", "fastv:3@1"])
def test_columns_asked_for_by_number(plan: str) -> None:
    """`logits_to_keep` counts columns of the sequence that was given, whatever is left of it."""
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    labels = inputs.pop("labels")
    length = labels.shape[1]
    boolean = labels >= 0
    asked = [1, 3, 12, length, torch.tensor([length - 1, 4, 17])]
    if compat.HAS_LOGITS_PER_ROW:
        asked += [torch.tensor([[3, 20]] * 3), boolean]
    with torch.no_grad():
        with foveate.compress(model, plan, align_logits=True):
            whole = model(**inputs).logits
            aligned = [model(**inputs, logits_to_keep=keep).logits for keep in asked]
        with foveate.compress(model, plan):
            found = [model(**inputs, logits_to_keep=keep) for keep in asked]
    every = torch.arange(length).expand(3, -1)
    for keep, out, own in zip(asked, found, aligned, strict=True):
        if isinstance(keep, int):
            expected, columns = whole[:, -keep:], every[:, -keep:]
        elif keep.dtype == torch.bool:
            expected, columns = whole[keep], None
        elif keep.ndim == 2:
            expected, columns = torch.stack([whole[row, keep[row]] for row in range(3)]), keep
        else:
            expected, columns = whole[:, keep], every[:, keep]
        torch.testing.assert_close(own, expected)
        torch.testing.assert_close(out.logits, expected)
        assert (out.kept_positions is None) if columns is None else torch.equal(out.kept_positions, columns)


def test_columns_of_every_row_need_a_version_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    del inputs["labels"]
    monkeypatch.setattr(compat, "HAS_LOGITS_PER_ROW", False)
    with torch.no_grad(), foveate.compress(model, "uniform:3"):
        assert model(**inputs, logits_to_keep=torch.tensor([3, 20])).logits.shape[:2] == (3, 2)
        with pytest.raises(FoveateError, match="cannot read logits_to_keep of two dimensions"):
            model(**inputs, logits_to_keep=torch.tensor([[3, 20]] * 3))


@pytest.mark.parametrize("plan", ["uniform:5", "uniform:5 + fastv:2@1"])
def test_hidden_states_and_attentions(plan: str) -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    length = inputs["input_ids"].shape[1]
    with attention(model, "eager"), torch.no_grad():
        with foveate.compress(model, plan):
            short = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
        with foveate.compress(model, plan, align_logits=True):
            long = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
    assert len(long.hidden_states) == len(short.hidden_states) == 3
    assert all(states.shape[1] == length for states in long.hidden_states)
    # Attentions are those of what was read, and then the output says what that is.
    assert [a.shape for a in long.attentions] == [a.shape for a in short.attentions]
    assert torch.equal(long.kept_positions, short.kept_positions)
    assert short.attentions[-1].shape[2:] == (short.kept_positions.shape[1],) * 2
    for row, columns in enumerate(short.kept_positions):
        kept = columns >= 0
        for own, other in zip(long.hidden_states, short.hidden_states, strict=True):
            same = other[row, -int(kept.sum()) :] if other.shape[1] == len(columns) else None
            if same is not None:
                torch.testing.assert_close(own[row, columns[kept]], same)
    first = long.hidden_states[1 if "@" in plan else 2]
    assert not torch.equal(first[:, 3:-3], torch.zeros_like(first[:, 3:-3]))


def test_gradients_reach_the_model_through_logits_of_all_columns() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    parameters = [p for n, p in model.named_parameters() if "language_model" in n]

    def gradients(align: bool) -> list[Tensor]:
        with foveate.compress(model, "uniform:3", align_logits=align):
            out = model(**inputs, use_cache=False)
        loss = mean_loss(out.logits, inputs["labels"]) if align else out.loss
        return list(torch.autograd.grad(loss, parameters))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_smoothed_loss() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    smooth, labels = LabelSmoother(0.1), inputs["labels"]
    with torch.no_grad():
        with foveate.compress(model, "uniform:3"):
            out = model(**inputs)
            expected = smooth({"logits": out.logits}, out.labels, shift_labels=True)
        with foveate.compress(model, "uniform:3", align_logits=True):
            found = smooth({"logits": model(**inputs).logits}, labels, shift_labels=True)
    torch.testing.assert_close(found, expected)


def test_outputs_go_through_what_libraries_do_to_them() -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), inputs_of(specimen)
    with torch.no_grad(), foveate.compress(model, "uniform:3"):
        out = model(**inputs, use_cache=False)
        untouched = model(**inputs, use_cache=False, return_dict=False)
        plain = model.model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
    assert isinstance(out, type(model(**inputs))) and type(out).__name__ == type(model(**inputs)).__name__
    if compat.HAS_IMAGE_OUTPUTS:
        assert torch.equal(out.image_outputs.pooler_output[0], model(**inputs).image_outputs.pooler_output[0])
    assert list(out)[-2:] == ["kept_positions", "labels"]
    assert torch.equal(untouched[-2], out.kept_positions) and torch.equal(untouched[-1], out.labels)
    assert torch.equal(plain.kept_positions, out.kept_positions)
    tensors = ("logits", "kept_positions", "labels")
    leaves, structure = pytree.tree_flatten(out)
    for twin in (
        convert_outputs_to_fp32(lambda: out)(),
        concatenate([type(out)(**{name: out[name] for name in tensors})] * 2),
        copy.deepcopy(out),
        pickle.loads(pickle.dumps(out)),
        pytree.tree_unflatten(leaves, structure),
        type(out)((key, out[key]) for key in out),
    ):
        assert list(twin)[-2:] == list(out)[-2:]
        assert torch.equal(twin.kept_positions[:3], out.kept_positions)
        assert torch.equal(twin["labels"][:3], out.labels)


def test_arguments_by_place_are_seen() -> None:
    """What is given without its name counts like the rest."""
    model = zoo()["llava"].model()
    inputs = inputs_of(zoo()["llava"])
    with torch.no_grad(), foveate.compress(model, "fastv:3@1"):
        expected = model(**inputs, use_cache=False)
        mask, labels = inputs["attention_mask"], inputs["labels"]
        found = model(
            inputs["input_ids"], inputs["pixel_values"], mask, None, None, None, None, None, labels, use_cache=False
        )
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize("name", [n for n in SPECIMENS if n.startswith(("llava", "qwen", "intern"))])
@pytest.mark.parametrize("plan", ["divprune:3", "fastv:3@1"])
def test_embeddings_in_place_of_ids(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model, inputs = specimen.model(), inputs_of(specimen)
    seen: dict[str, Any] = {}
    text: Any = family_of(model).text(family_of(model).core(model))
    handle = text.register_forward_pre_hook(lambda m, a, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    if seen.get("position_ids") is not None:  # they are worked out from ids
        inputs["position_ids"] = seen["position_ids"]
    with torch.no_grad(), compress(specimen, plan):
        expected = model(**inputs)
        ids = inputs.pop("input_ids")
        found = model(**inputs, inputs_embeds=model.get_input_embeddings()(ids))
    assert (ids == IMAGE).any() and (ids < END).any()
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
