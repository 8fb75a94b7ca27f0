"""`foveate flops` on the command line."""

import json

import pytest

from foveate import cost
from foveate.cli import main
from foveate.commands.flops import shown, spans
from foveate.loading import load_skeleton


def test_a_plan_on_a_released_model(capsys):
    assert main(["flops", "--model", "llava-1.5-7b", "--plan", "fastv:50%@2", "--dtype", "float16", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["patches"], document["tokens"], document["plan"]) == (576, 576, "fastv:50%@2")
    assert document["tokens_per_layer"] == [576, 576, *[288] * 30]
    rows = {row["part"]: row for row in document["parts"]}
    # By hand: 32 layers of 640 or 352 tokens, 4 projections of 4096 x 4096.
    assert rows["projections"]["flops"] == 2 * (2 * 640 + 30 * 352) * 4 * 4096**2
    assert rows["projections"]["full_model_flops"] == 2 * 32 * 640 * 4 * 4096**2
    assert rows["encoder"]["share"] == 1
    parts = [row["flops"] for name, row in rows.items() if "token" not in name]
    assert rows["to the first token"]["flops"] == sum(parts) == 2 * rows["to the first token"]["macs"]
    assert document["kv"]["full_model_bytes"] == 32 * 640 * 2 * 4096 * 2
    assert document["kv"]["bytes"] == (2 * 640 + 30 * 352) * 2 * 4096 * 2


def test_the_embedded_model_in_words(capsys):
    assert main(["flops", "--image", "300x200", "--plan", "downsample:25%"]) == 0
    text = capsys.readouterr().out
    model, processor = load_skeleton()
    unit = model.config.vision_config.unit
    width, height = processor.image_processor.target_size(300, 200)
    tokens = (width // unit) * (height // unit)
    assert f"{tokens} visual tokens, 64 of text" in text
    assert f"{round(tokens / 4)} in layers 0-{model.config.text_config.num_hidden_layers - 1}" in text
    assert "to the first token" in text and "full model" in text


def test_tokens_in_place_of_an_image(capsys):
    assert main(["flops", "--model", "llava-1.5-7b", "--tokens", "100", "--text", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["part"] for row in document["parts"]}.isdisjoint({"encoder", "connector"})
    assert (document["image"], document["tokens"]) == (None, 100)


def test_conventions(capsys):
    def total(*options: str) -> int:
        assert main(["flops", "--model", "qwen2.5-vl-3b", *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["parts"][-2]["flops"]

    assert total("--attention", "none") < total("--attention", "causal") < total() < total("--head", "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "llava-1.5-7"], "did you mean llava-1.5-7b"),
        (["--image", "3x"], "is not a size"),
        (["--image", "0x7"], "sides are 1 to"),
        (["--dtype", "int2"], "is not one of float32"),
        (["--text", "-1"], "the minimum is 0"),
        (["--tokens", "0"], "the minimum is 1"),
        (["--attention", "half"], "is not one of full, causal, none"),
        (["--head", "first"], "is not one of last, all, none"),
        (["--model", "llava-1.5-7b", "--plan", "fastv:50%@40"], "layers 0 to 31"),
        (["--model", "qwen2-vl-7b", "--image", "10000x10"], "refused by the model"),
        (["--plan", "fourier:36"], "needs the connector fourier, and this model has mlp"),
        (["--plan", "mqt:16"], "needs the connector mqt, and this model has mlp"),
        (["--plan", "nested:16"], "needs a nested connector, and this model has mlp"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(options, message, capsys):
    assert main(["flops", *options, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert message in error and "\n" not in error


def test_published_numbers(capsys):
    assert main(["flops", "--papers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["claims"]
    assert {claim["paper"] for claim in found} >= {
        "FastV", "LLaVA-UHD v4", "LLaVA-Mini", "Fourier-VLM", "VisionDrop", "HiPrune", "PyramidDrop",
    }  # fmt: skip
    assert main(["flops", "--papers"]) == 0
    assert "VisionDrop" in capsys.readouterr().out


def test_numbers_in_words():
    assert [shown(value) for value in (7, 1500, 8.913e12, 45.6e9, 382e9)] == [
        "7", "1.50 k", "8.91 T", "45.6 G", "382 G",
    ]  # fmt: skip
    assert spans([5]) == "5 in layer 0"
    assert spans([5, 5, 3, 2, 2]) == "5 in layers 0-1, 3 in layer 2, 2 in layers 3-4"


@pytest.mark.parametrize("name", cost.RELEASED)
def test_every_released_model_can_be_counted(name, capsys):
    assert main(["flops", "--model", name, "--plan", "random:25% + fastv:50%@2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    quarter = round(document["tokens"] / 4)
    assert document["tokens_per_layer"][1:3] == [quarter, round(quarter / 2)]
    assert document["parts"][0]["flops"] > 0
