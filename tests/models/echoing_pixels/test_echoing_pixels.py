"""EchoingPixels: the selection's equation, promises on the model, and the numbers of the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForMultimodalLM

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.models.echoing_pixels import EchoingPixelsConfig, EchoingPixelsForConditionalGeneration
from foveate.models.echoing_pixels.selection import kept_columns, pool_counts, select_tokens
from tests.models.echoing_pixels import small_omni as small

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "echoing_pixels.json").read_text(encoding="utf-8"))
#: Tokens that a trained model does not write: placeholders, and the end of the text.
UNWRITTEN = [small.AUDIO, small.IMAGE, small.VIDEO, 58]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 58, "suppress_tokens": UNWRITTEN}


def build(**text: Any) -> EchoingPixelsForConditionalGeneration:
    fields = {**small.TEXT, "sync_sections": small.SECTIONS, "num_refiner_layers": 2, "retention_ratio": 0.3, **text}
    config = EchoingPixelsConfig(
        text_config=fields, audio_config=small.AUDIO_CONFIG, vision_config=small.VISION_CONFIG, **small.TOKENS
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EchoingPixelsForConditionalGeneration(config).eval()
    names = {small.released_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    filled = small.fill(names)
    model.load_state_dict({name: filled[small.released_name(name)] for name in model.state_dict()})
    return model


@pytest.fixture(scope="module")
def model() -> EchoingPixelsForConditionalGeneration:
    return build()


def released_folder(folder: Path) -> Path:
    """A checkpoint in the authors' layout, with parts of Qwen2.5-Omni that are not used."""
    names = {small.released_name(name): tuple(value.shape) for name, value in build().state_dict().items()}
    state = small.fill(names) | {"talker.lm_head.weight": torch.zeros(2, 2), "token2wav.x": torch.zeros(1)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    text = {**small.TEXT, "av_refiner_layers": 2, "compression_ratio": 0.3}
    # Their sections of Sync-RoPE are an environment variable; a small head needs others than the default.
    thinker = {"text_config": text | {"sync_sections": small.SECTIONS}, "vision_config": small.VISION_CONFIG}
    thinker |= {"audio_config": small.AUDIO_CONFIG, **small.TOKENS}
    document = {"model_type": "qwen2_5_omni_compress", "thinker_config": thinker}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_authors_numbers(tmp_path: Path) -> None:
    model = EchoingPixelsForConditionalGeneration.from_pretrained(released_folder(tmp_path)).eval()
    assert model.config.text_config.num_refiner_layers == 2
    for turn, expected in enumerate(GOLDEN["cases"]):
        given = small.prompt(turn)
        labels = torch.full_like(given["input_ids"], -100)
        labels[:, -2:] = given["input_ids"][:, -2:]
        with torch.no_grad():
            output = model(**given)
            loss = model(**given, labels=labels).loss
        assert output.columns[0].tolist() == expected["columns"]
        torch.testing.assert_close(output.logits[0, :, ::6], torch.tensor(expected["logits"]), rtol=1e-4, atol=2e-5)
        assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
        assert int(model.model.rope_deltas) == expected["delta"]


def test_selection_is_the_equation() -> None:
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 9, generator=chance).requires_grad_()
    pool = torch.rand(3, 9, generator=chance) < 0.6
    pool[2] = False
    counts = pool_counts(pool, 0.4)
    kept, weights = select_tokens(scores, pool, counts, temperature=0.7)
    for row in range(3):
        members = [place for place in range(9) if pool[row, place]]
        assert int(counts[row]) == (max(1, math.ceil(0.4 * len(members))) if members else 0)
        best = sorted(members, key=lambda place: -float(scores[row, place].detach()))[: int(counts[row])]
        assert kept[row].nonzero().flatten().tolist() == sorted(best)
        assert float(weights[row].detach().sum()) == pytest.approx(len(best), abs=1e-5)
    # The gradient of sum(v w) is that of sum(v softmax), also for tokens that were not kept.
    values = torch.randn(3, 9, generator=chance)
    (gradient,) = torch.autograd.grad((weights * values).sum(), scores)
    soft = torch.zeros(3, 9)
    for row in range(3):
        total = sum(math.exp(float(scores[row, place].detach()) / 0.7) for place in range(9) if pool[row, place])
        for place in range(9):
            if pool[row, place]:
                soft[row, place] = math.exp(float(scores[row, place].detach()) / 0.7) / total
    mean = (soft * values).sum(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, soft * (values - mean) / 0.7, rtol=1e-4, atol=1e-6)
    assert bool((gradient[:2] != 0)[pool[:2]].all())


def test_shares_are_exact() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point."""
    pool = torch.arange(700) < torch.tensor([100, 300, 700])[:, None]
    assert pool_counts(pool, 0.07).tolist() == [7, 21, 49] and pool_counts(pool, 1).tolist() == [100, 300, 700]


def test_columns_are_in_order_and_padded_on_the_left() -> None:
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    assert kept_columns(kept).tolist() == [[0, 2, 3], [-1, -1, 1]]


def test_scores_decide_which_modality_stays(model: EchoingPixelsForConditionalGeneration) -> None:
    ids = small.prompt()["input_ids"][0]
    pool = (ids == small.AUDIO) | (ids == small.VIDEO)
    scores = torch.where(ids == small.AUDIO, 1.0, 0.0)[None]
    kept, _ = select_tokens(scores, pool[None], torch.tensor([6]))
    assert ids[kept[0]].tolist() == [small.AUDIO] * 6
    kept, _ = select_tokens(-scores, pool[None], torch.tensor([8]))
    assert ids[kept[0]].tolist() == [small.VIDEO] * 8


def test_sync_rope_gives_time_two_sections(model: EchoingPixelsForConditionalGeneration) -> None:
    positions = torch.tensor([[[3.0]], [[5.0]], [[7.0]]])
    rotary = model.model.language_model.rotary_emb
    cos, sin = rotary(torch.zeros(1, 1, 1), positions)
    for pair in range(8):
        axis = (0, 0, 1, 1, 2, 2, 0, 0)[pair]
        angle = float(positions[axis]) * 1_000_000.0 ** (-pair / 8)
        for offset in (0, 8):
            assert float(cos[0, 0, pair + offset]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sin[0, 0, pair + offset]) == pytest.approx(math.sin(angle), abs=1e-6)
    default = EchoingPixelsConfig(text_config={"num_hidden_layers": 4}).text_config
    assert default.rope_parameters["mrope_section"] == [18, 18, 18, 10]


def test_everything_kept_without_refiner_is_the_thinker() -> None:
    model = build(num_refiner_layers=0)
    given = small.prompt()
    plain = super(EchoingPixelsForConditionalGeneration, model)
    with torch.no_grad():
        full = model(**given, retention_ratio=1.0)
        model.model.language_model.pooling = lambda *_: torch.no_grad()  # no selection: the thinker of transformers
        assert torch.equal(plain.forward(**given).logits, full.logits)
    assert full.columns[0].tolist() == list(range(given["input_ids"].shape[1]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generate_equals_passes_without_a_cache(attention: str) -> None:
    model = build()
    model.set_attn_implementation(attention)
    given = small.prompt()
    written = model.generate(**given, **GREEDY, retention_ratio=0.5)
    ids = given["input_ids"]
    for _ in range(4):
        call = {**given, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        # Tokens that were written are answers, which the selection does not read.
        answers = torch.arange(ids.shape[1])[None] >= given["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**call, retention_ratio=0.5, answer_mask=answers, use_cache=False).logits[:, -1]
        logits[:, UNWRITTEN] = -torch.inf
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(written, ids)


def test_a_batch_equals_its_prompts(model: EchoingPixelsForConditionalGeneration) -> None:
    one, text = small.prompt(1), torch.tensor([[1, 7, 8, 9]])
    length = one["input_ids"].shape[1]
    pad = length - text.shape[1]
    for side in ("left", "right"):
        fill, zeros = torch.full((1, pad), small.PAD), torch.zeros(1, pad, dtype=torch.int64)
        order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
        ids = torch.cat([one["input_ids"], torch.cat(order(text, fill), dim=1)])
        mask = torch.cat([one["attention_mask"], torch.cat(order(torch.ones_like(text), zeros), dim=1)])
        call = {**one, "input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            together = model(**call)
            alone = [model(**one), model(input_ids=text, attention_mask=torch.ones_like(text))]
        for row in range(2):
            count = alone[row].logits.shape[1]
            assert int((together.columns[row] >= 0).sum()) == count
            torch.testing.assert_close(together.logits[row, -count:], alone[row].logits[0], rtol=1e-4, atol=1e-5)
        if side == "left":
            written = model.generate(**call, **GREEDY)
            assert torch.equal(written[:1], model.generate(**one, **GREEDY))
            answer = model.generate(input_ids=text, attention_mask=torch.ones_like(text), **GREEDY)
            assert torch.equal(written[1:, length:], answer[:, text.shape[1] :])


def test_the_cache_is_shorter_and_has_an_owner(model: EchoingPixelsForConditionalGeneration) -> None:
    given = small.prompt()
    output = model.generate(**given, **GREEDY, return_dict_in_generate=True)
    cache = compat.cache_of(output)
    kept = len(GOLDEN["cases"][0]["columns"])
    assert cache.layers[0].keys.shape[2] == kept + 3  # the last token is not read
    assert cache.get_seq_length() == given["input_ids"].shape[1] + 3
    other = build()
    with pytest.raises(FoveateError, match="filled under EchoingPixels"):
        other(input_ids=torch.tensor([[5]]), position_ids=torch.full((3, 1, 1), 60), **compat.cache_argument(cache))
    with pytest.raises(FoveateError, match="in the first pass"):
        model(**given, **compat.cache_argument(cache))


@pytest.mark.parametrize("gumbel", [False, True])
def test_training_reaches_scores_and_refiner(gumbel: bool) -> None:
    model = build(gumbel=gumbel).train()
    given = small.prompt()
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -2:] = given["input_ids"][:, -2:]
    losses = []
    for seed in (0, 0, 1, 2, 3):
        model.model.language_model.generator = torch.Generator().manual_seed(seed)
        losses.append(model(**given, labels=labels).loss)
    assert torch.equal(losses[0], losses[1])
    assert (len({float(loss.detach()) for loss in losses}) > 1) == gumbel
    losses[0].backward()
    text = model.model.language_model
    for module in (text.selector, text.refiner[0], text.refiner[1], text.layers[0]):
        assert all(value.grad is not None and bool(value.grad.any()) for value in module.parameters())


def test_the_loss_is_divided_by_the_items_of_a_step(model: EchoingPixelsForConditionalGeneration) -> None:
    """The Trainer accumulates gradients of several batches, and gives each the number of labels of all."""
    given = small.prompt()
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -2:] = given["input_ids"][:, -2:]
    with torch.no_grad():
        mean = model(**given, labels=labels).loss
        of_step = model(**given, labels=labels, num_items_in_batch=4 * labels[:, 1:].ne(-100).sum()).loss
    torch.testing.assert_close(4 * of_step, mean)


def test_refiner_starts_as_the_decoder() -> None:
    text = build().model.language_model
    text.copy_decoder_to_refiner()
    for place in range(2):
        copied, source = text.refiner[place].state_dict(), text.layers[place].state_dict()
        assert all(torch.equal(copied[name], source[name]) for name in source)


def test_save_and_load(model: EchoingPixelsForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EchoingPixelsConfig)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**small.prompt()).logits, model(**small.prompt()).logits)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sync_sections": [2, 2, 2]}, "four numbers whose sum is 8"),
        ({"retention_ratio": 0.0}, "greater than 0 and at most 1"),
        ({"num_refiner_layers": 4}, "must be 0 to 3"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
    ],
)
def test_invalid_configurations(fields: dict, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        build(**fields)


def test_invalid_calls(model: EchoingPixelsForConditionalGeneration) -> None:
    with pytest.raises(FoveateError, match="at most 1, not 2"):
        model(**small.prompt(), retention_ratio=2)
    given = small.prompt()
    embeds = model.get_input_embeddings()(given.pop("input_ids"))
    with pytest.raises(FoveateError, match="give input_ids"):
        model(inputs_embeds=embeds, **given)
