"""Llama-AVSR, Llama-MTSK and MoME: equations, promises, and the numbers of the authors' code."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSpeechSeq2Seq, LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from foveate.core.errors import FoveateError
from foveate.models.avsr import (
    AVSRConfig,
    AVSRForConditionalGeneration,
    LipEncoder,
    LipEncoderConfig,
    Rates,
    audio_frames,
)
from foveate.models.avsr.adapters import MoME, balance_loss
from foveate.models.avsr.conversion import convert_released
from foveate.models.avsr.rates import compress_frames
from tests.models.avsr import released_llama_avsr as released
from tests.models.avsr.small_models import KINDS, LIPS, TEXT, WHISPER, build, inputs, text

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "llama_avsr.json").read_text(encoding="utf-8"))
#: Four tokens, whatever they are.
GREEDY = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("case", released.CASES)
def test_authors_numbers(case: str) -> None:
    settings = released.CASES[case]
    config = AVSRConfig(
        text_config=released.TEXT,
        audio_config=released.WHISPER if settings["audio_rates"] else None,
        video_hidden_size=released.VIDEO if settings["video_rates"] else None,
        audio_rates=settings["audio_rates"] or [1],
        video_rates=settings["video_rates"] or [1],
        compression=settings["compression"],
        projector_norm=settings["norm"],
        projector_hidden_size=released.HIDDEN,
        lora_reduction=released.REDUCTION,
        lora_alpha=released.ALPHA,
        **{f"{name}_token_id": number for name, number in released.MARKERS.items()},
    )
    model = AVSRForConditionalGeneration(config).eval()
    model.load_state_dict(convert_released(released.weights(case), config))
    assert audio_frames(released.SAMPLES) == released.AUDIO_FRAMES
    for turn, expected in enumerate(GOLDEN[case]):
        given = released.inputs(turn)
        start = torch.tensor([released.BOS, *released.PROMPT]).expand(2, -1)
        ids = torch.cat([start, given.pop("words"), torch.full((2, 1), released.EOS)], dim=1)
        labels = ids.clone()
        labels[:, : start.shape[1]] = -100
        if config.reads_audio:
            given["audio_lengths"] = torch.full((2,), released.AUDIO_FRAMES)
        else:
            given.pop("input_features")
        if not config.reads_video:
            given.pop("video_features")
        # Their order: video rates outside, audio rates inside.
        pairs = sorted(config.all_rates, key=lambda rates: (rates.video or 0, rates.audio or 0))
        for rates, loss, logits, length in zip(
            pairs, expected["losses"], expected["logits"], expected["length"], strict=True
        ):
            with torch.no_grad():
                output = model(ids, labels=labels, rates=rates, **given)
            assert output.logits.shape[1] == length
            assert float(output.loss) == pytest.approx(loss, rel=1e-5)
            found = output.logits[:, -6:, ::5].flatten(0, 1)
            torch.testing.assert_close(found, torch.tensor(logits), rtol=1e-4, atol=2e-5)
        assert sum(expected["losses"]) / len(pairs) == pytest.approx(expected["loss"], rel=1e-5)
        if len(pairs) > 1:
            total = model.train()(ids, labels=labels, **given).loss
            assert float(total.detach()) == pytest.approx(expected["loss"], rel=1e-5)
            model.eval()


def test_released_names_are_checked() -> None:
    config = build(audio_rates=[4], video_rates=[2]).config
    with pytest.raises(FoveateError, match="no weight of Llama-AVSR"):
        convert_released({"audiovisual_proj.0.weight": torch.zeros(1)}, config)
    with pytest.raises(FoveateError, match="1 rates of audio"):
        convert_released({"audio_proj.1.0.weight": torch.zeros(1)}, config)
    with pytest.raises(FoveateError, match="one LoRA for all rates"):
        convert_released({}, build(adapter="mome").config)


def test_frames_are_stacked_and_averaged() -> None:
    features = torch.randn(2, 13, 4)
    stacked = compress_frames(features, 3, "stack")
    averaged = compress_frames(features, 3, "average")
    assert stacked.shape == (2, 4, 12)
    assert torch.equal(stacked.unflatten(2, (3, 4)).flatten(1, 2), features[:, :12])
    for place in range(4):
        torch.testing.assert_close(averaged[:, place], features[:, 3 * place : 3 * place + 3].sum(dim=1) / 3)


@pytest.mark.parametrize("normalize", [False, True])
def test_mome_is_the_equation(normalize: bool) -> None:
    torch.manual_seed(0)
    width, size, routed, shared, chosen = 8, 3, 5, 1, 2
    module = MoME(width, routed, chosen, shared, size, normalize)
    x = torch.randn(2, 4, width)
    down, up = module.down.weight.unflatten(0, (-1, size)), module.up.weight.unflatten(1, (-1, size))

    def expert(number: int, token: torch.Tensor) -> torch.Tensor:
        return up[:, number] @ F.gelu(down[number] @ token)

    expected = torch.zeros_like(x)
    counts, mean = torch.zeros(routed), torch.zeros(routed)
    for row in range(2):
        for place in range(4):
            token = x[row, place]
            gates = torch.softmax(module.router.weight @ token, dim=0)
            best = sorted(range(routed), key=lambda number: -float(gates[number].detach()))[:chosen]
            total = sum(float(gates[number].detach()) for number in best) if normalize else 1.0
            expected[row, place] = expert(0, token)
            for number in best:
                expected[row, place] += gates[number] / total * expert(shared + number, token)
                counts[number] += 1 / (8 * chosen)
            mean += gates.detach() / 8
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    loss = balance_loss([module.take_routed()], torch.ones(2, 4))
    torch.testing.assert_close(loss, routed * (counts * mean).sum())
    assert module.active_parameters == routed * width + (shared + chosen) * 2 * size * width


def test_balance_loss_ignores_padding() -> None:
    module = MoME(8, 5, 2, 1, 3)
    x = torch.randn(1, 6, 8)
    module(x)
    padded = balance_loss([module.take_routed()], torch.tensor([[0, 0, 1, 1, 1, 1]]))
    module(x[:, 2:])
    torch.testing.assert_close(balance_loss([module.take_routed()], torch.ones(1, 4)), padded)


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing(kind: str) -> None:
    model = build(trained=False, **KINDS[kind])
    ids, mask, _ = text()
    with torch.no_grad():
        with_adapters = model(ids, mask, **inputs()).logits
        for name, module in model.named_modules():
            if hasattr(module, "adapter") and name:
                module._forward_hooks.clear()
        assert torch.equal(model(ids, mask, **inputs()).logits, with_adapters)


def test_per_rate_adapters_are_used_by_their_rates_alone() -> None:
    model = build(**KINDS["mtsk-mss"])
    ids, mask, _ = text()
    every = model.config.all_rates
    with torch.no_grad():
        before = [model(ids, mask, rates=rates, **inputs()).logits for rates in every]
        for name, value in model.named_parameters():
            if f".of_rates.{every[1].key}." in name:
                value.zero_()
        after = [model(ids, mask, rates=rates, **inputs()).logits for rates in every]
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True, True]
        # MSS without the part of the rates is MS.
        shared = build(**KINDS["mtsk-ms"])
        shared.load_state_dict({k: v for k, v in model.state_dict().items() if ".of_rates." not in k})
        torch.testing.assert_close(shared(ids, mask, rates=every[1], **inputs()).logits, after[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_clips(kind: str) -> None:
    model = build(**KINDS[kind])
    ids, mask, labels = text()
    given = inputs()
    for rates in model.config.all_rates:
        with torch.no_grad():
            together = model(ids, mask, labels, rates, **given)
            generated = model.generate(ids[:, :2], rates, **GREEDY, **given)
            for row, length in enumerate(mask.sum(dim=1).tolist()):
                one = {name: value[row : row + 1] for name, value in given.items()}
                one["video_values"] = one["video_values"][:, : int(one["video_lengths"])]
                # Whisper reads what follows the sound too, as in the batch; the language model does not.
                alone = model(ids[row : row + 1, :length], labels=labels[row : row + 1, :length], rates=rates, **one)
                count = alone.logits.shape[1]
                sound, video = (int(one[f"{name}_lengths"]) for name in ("audio", "video"))
                assert rates.audio is not None and rates.video is not None
                assert count == length + 4 + sound // rates.audio + video // rates.video
                torch.testing.assert_close(together.logits[row, -count:], alone.logits[0], rtol=1e-4, atol=1e-5)
                written = model.generate(ids[row : row + 1, :2], rates, **GREEDY, **one)
                assert torch.equal(written[0], generated[row])


@pytest.mark.parametrize("kind", ["mtsk-mss", "mome"])
def test_generate_equals_passes_without_a_cache(kind: str) -> None:
    model = build(**KINDS[kind])
    ids = torch.tensor([[5, 10], [5, 10]])
    rates = model.config.all_rates[2]
    written = model.generate(ids, rates, **inputs(), **GREEDY)
    for _ in range(4):
        with torch.no_grad():
            logits = model(ids, rates=rates, **inputs()).logits[:, -1]
            logits[:, 6] = -torch.inf  # the end of the text
            following = logits.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
    assert torch.equal(ids[:, 2:], written)


@pytest.mark.parametrize("kind", KINDS)
def test_training_saving_and_copying(kind: str, tmp_path: Path) -> None:
    model = build(**KINDS[kind])
    model.freeze_pretrained()
    ids, mask, labels = text()
    output = model.train()(ids, mask, labels, **inputs())
    output.loss.backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all(".adapter." in name or "projector." in name for name in trained)
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing
    if len(model.config.all_rates) > 1:
        model.eval()
        with torch.no_grad():
            each = [model(ids, mask, labels, rates, **inputs()).loss for rates in model.config.all_rates]
        torch.testing.assert_close(output.losses.detach(), torch.stack(each), rtol=1e-5, atol=1e-6)
    balance = 0.0 if output.balance_loss is None else model.config.balance_weight * output.balance_loss
    torch.testing.assert_close(output.loss, output.losses.mean() + balance)
    assert (output.balance_loss is not None) == (model.config.adapter == "mome")
    model.eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path).eval()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(ids, mask, **inputs()).logits
        assert torch.equal(loaded(ids, mask, **inputs()).logits, expected)
        for name, value in model.named_parameters():
            if ".adapter." in name:
                value.zero_()  # the copy has adapters of its own
        assert torch.equal(copied(ids, mask, **inputs()).logits, expected)


def test_experts_are_balanced_where_the_frozen_language_model_is_in_evaluation_mode() -> None:
    model = build(**KINDS["mome"])
    ids, mask, labels = text()
    expected = model.train()(ids, mask, labels, **inputs()).balance_loss
    model.language_model.eval()
    found = model(ids, mask, labels, **inputs()).balance_loss
    assert found is not None and torch.equal(found, expected) and not model.language_model.training


def test_features_stand_for_encoders() -> None:
    model = build()
    ids, mask, _ = text()
    given = inputs()
    with torch.no_grad():
        given.pop("video_lengths")
        expected = model(ids, mask, **given).logits
        given["audio_features"] = model.get_audio_features(given.pop("input_features"))
        given["video_features"] = model.get_video_features(given.pop("video_values"))
        assert torch.equal(model(ids, mask, **given).logits, expected)


def test_from_parts(tmp_path: Path) -> None:
    parts = {
        "text": LlamaForCausalLM(LlamaConfig(**TEXT)),
        "audio": WhisperModel(WhisperConfig(**WHISPER)),
        "video": LipEncoder(LipEncoderConfig(**LIPS)),
    }
    for name, part in parts.items():
        part.eval().save_pretrained(tmp_path / name)
    model = AVSRForConditionalGeneration.from_parts(
        **{name: tmp_path / name for name in parts}, adapter="mome", num_experts=4, expert_size=2
    ).eval()
    given = inputs()
    with torch.no_grad():
        sound = parts["audio"].encoder(given["input_features"]).last_hidden_state
        assert torch.equal(model.get_audio_features(given["input_features"]), sound)
        lips = parts["video"](given["video_values"]).last_hidden_state
        assert torch.equal(model.get_video_features(given["video_values"]), lips)
        ids = torch.tensor([[5, 10, 11]])
        assert torch.equal(model.language_model(ids).logits, parts["text"](ids).logits)


def test_rates_are_written_and_read() -> None:
    assert Rates.of("audio:4,video:2") == Rates.of((4, 2)) == Rates(4, 2)
    assert str(Rates(16)) == "audio:16" and Rates.of("audio:16") == Rates(16, None)
    assert audio_frames(16_000) == 50 and audio_frames(100) == 25


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rates": "audio:5,video:2"}, "possible are audio:4,video:2"),
        ({"rates": "sound=4"}, "write them as audio:4,video:2"),
        ({"rates": 4}, "are no rates"),
        ({"rates": (4.0, 2.0)}, "are no rates"),
        ({"rates": "audio:4,audio:16,video:2"}, "are no rates"),
        ({"input_features": torch.zeros(1, 8, 80), "audio_lengths": None}, "there are 2 texts and audio of 1 clips"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask \(2, 4\) must fit input_ids \(2, 5\)"),
        ({"labels": torch.ones(1, 5)}, r"labels \(1, 5\) must fit input_ids"),
        ({"video_lengths": torch.tensor([20.0, 16.0])}, "video_lengths must be the frames of each of 2 clips"),
        ({"video_values": None}, "the model reads video"),
        ({"audio_features": torch.zeros(2, 40, 24)}, "either input_features or audio_features"),
        ({"input_features": torch.zeros(2, 8, 70)}, "padded spectrograms"),
        ({"video_values": torch.zeros(2, 20, 8, 8)}, "reads clips"),
        ({"audio_lengths": torch.tensor([41, 40])}, "at most 40"),
        ({"video_lengths": torch.tensor([1, 20])}, "no video token at a rate of 2"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1]] * 2)}, "padded on the right"),
    ],
)
def test_invalid_calls(change: dict, sentence: str) -> None:
    ids, mask, _ = text()
    with pytest.raises(FoveateError, match=sentence):
        build()(ids, **{"attention_mask": mask, **inputs(), **change})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"audio_config": None, "video_config": None}, "needs audio_config"),
        ({"audio_rates": [4, 4]}, "audio_rates must be different"),
        ({"video_rates": [0]}, "video_rates must be"),
        ({"adapter": "prefix"}, "adapter must be lora, mome"),
        ({"num_experts": 2, "num_experts_per_token": 3}, "cannot have 3 of 2"),
        ({"lora_reduction": 100}, "leaves no rank"),
        ({"text_config": {"model_type": "phi3", **TEXT}}, "use a Llama or Qwen2"),
    ],
)
def test_invalid_configurations(fields: dict, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        build(**fields)
