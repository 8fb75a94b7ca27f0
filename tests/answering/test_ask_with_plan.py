"""Plans where questions are asked and models are loaded; the models are small and random."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate import FoveateError, Plan, ask, load
from foveate.answering.answer import Tokens
from foveate.answering.selections import seen_of, selected
from foveate.cli import main
from foveate.core.plan import PLAN_FILE
from foveate.core.tokens import Crop, Grid, Selection, merge_tokens
from foveate.families import ImageLayout
from foveate.methods.decoding.specvlm import SpecVLM, SpecVLMConfig
from foveate.runtime import handle_of
from foveate.runtime.report import ImageReport, StepReport
from foveate.visualization.answer import draw_answer
from foveate.visualization.selection import draw_selection, joined
from tests.tiny_model import noise, save_internvl, save_llava_uhd


@pytest.mark.parametrize("plan", ["divprune:25%", "vmtc:5", "downsample:50%", "divprune:50% + divprune:4"])
def test_what_is_read_is_what_the_plan_left(pair, plan):
    answer = ask(noise(64, 64), "?", pair, plan, max_new_tokens=2)
    [image] = answer.selection
    assert answer.plan == plan and handle_of(pair[0]) is None
    assert answer.tokens.read == image["tokens_kept"] == len(image["kept"]) + len(image["merged"])
    assert image["tokens_in"] == answer.tokens.full == 16 and answer.tokens.unmerged == 256
    assert set(answer.tokens.by_layer) == {answer.tokens.read} and answer.tokens.share == answer.tokens.read / 16
    assert answer.stages[-1].tokens == image["tokens_kept"] and answer.stages[-1].name in plan
    assert {"preprocess", "encoder", "prefill", "decode", "total"} <= set(answer.times)
    everything = [*image["kept"], *image["dropped"], *(token for group in image["merged"] for token in group["tokens"])]
    assert sorted(everything) == list(range(16))
    json.dumps(answer.to_dict(), allow_nan=False)


def test_tokens_are_compared_with_those_of_the_full_model_layer_by_layer(pair):
    answer = ask(noise(64, 64), "?", pair, "divprune:8 + fastv:2@1", max_new_tokens=2)
    layers = pair[0].config.text_config.num_hidden_layers
    assert answer.tokens.by_layer == [8] + [2] * (layers - 1)
    assert answer.tokens.share == (8 + 2 * (layers - 1)) / layers / 16
    assert ask(noise(64, 64), "?", pair, max_new_tokens=2).tokens.by_layer == [16] * layers


@pytest.mark.parametrize(
    ("by_layer", "summary"),
    [
        ([16, 16, 16], "16 of the image"),
        ([4, 4, 4], "4 of the image, 25% of the full model's 16"),
        ([8, 4, 0], "8 of the image in layer 0, 4 in layer 1 and 0 in layer 2, on average 25% of the full model's 16"),
        ([16, 4, 4, 4], "16 of the image in layer 0 and 4 in layers 1 to 3, on average 44% of the full model's 16"),
        ([], "8 of the image, 50% of the full model's 16"),
    ],
)
def test_the_summary_names_every_number_of_tokens(by_layer, summary):
    tokens = Tokens(by_layer[0] if by_layer else 8, 16, 64, text=9, generated=2, by_layer=by_layer)
    assert tokens.summary() == summary


@pytest.mark.parametrize("plan", ["divprune:25%", "tome:50%", "visionzip:10", "downsample:16"])
def test_another_model(llava, plan):
    answer = ask(noise(32, 32), "?", llava, plan, max_new_tokens=2)
    assert answer.tokens.read == answer.selection[0]["tokens_kept"] < 64
    assert draw_answer(answer, noise(32, 32)).width == 1600


def test_a_full_budget_changes_no_answer(pair):
    plain = ask(noise(64, 64), "?", pair, max_new_tokens=8)
    whole = ask(noise(64, 64), "?", pair, "divprune:100%", max_new_tokens=8)
    assert whole.text == plain.text and whole.inert and not plain.inert
    assert plain.plan is None and plain.selection == []


def test_an_attached_plan_is_followed_and_stays(pair):
    with foveate.compress(pair[0], "divprune:3") as handle:
        answer = ask(noise(64, 64), "?", pair, max_new_tokens=2)
        assert (answer.plan, answer.tokens.read) == ("divprune:3", 3)
        assert handle_of(pair[0]) is handle
        with pytest.raises(FoveateError, match="attached to this model already"):
            ask(noise(64, 64), "?", pair, "divprune:4")


def test_a_saved_plan_is_attached_unless_told_otherwise(tmp_path):
    folder = save_llava_uhd(tmp_path)
    assert handle_of(load(folder)[0]) is None
    Plan.of("divprune:5").save(folder)
    assert str(handle_of(load(folder)[0]).plan) == "divprune:5"
    assert handle_of(load(folder, plan=None)[0]) is None
    assert str(handle_of(load(folder, plan="divprune:6")[0]).plan) == "divprune:6"
    assert ask(noise(64, 64), "?", folder, max_new_tokens=1).tokens.read == 5
    assert ask(noise(64, 64), "?", folder, "divprune:7", max_new_tokens=1).tokens.read == 7
    (folder / PLAN_FILE).write_text("{}")
    with pytest.raises(FoveateError, match="holds no plan"):
        load(folder)


def test_nothing_is_attached_to_what_is_of_no_family():
    assert handle_of(torch.nn.Linear(1, 1)) is None


def test_the_command(capsys, tmp_path):
    folder, image, target = str(save_llava_uhd(tmp_path)), tmp_path / "n.png", tmp_path / "out.png"
    noise(64, 64).save(image)
    line = ["ask", str(image), "?", "--model", folder, "--plan", "vmtc:5", "--max-new-tokens", "2"]
    assert main([*line, "--picture", str(target), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"] == "vmtc:5" and document["tokens"]["read"] == 5
    assert document["selection"][0]["crops"][0]["grid"] == [4, 4]
    with Image.open(target) as picture:
        assert picture.width == 1600
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "plan      vmtc:5" in out and "in place of [CLS] attention" in out and "nothing was left out" not in out
    for plan, inert in (("fastv:100%@1", True), ("fastv:50%@1", False)):
        assert main(["ask", str(image), "?", "--model", folder, "--plan", plan, "--max-new-tokens", "2"]) == 0
        assert (f"note      {plan}: nothing was left out" in capsys.readouterr().out) == inert


def test_a_draft_beside_a_plan(tmp_path):
    folder, draft = save_llava_uhd(tmp_path / "model"), tmp_path / "draft"
    pair = load(folder)
    SpecVLM.new(SpecVLMConfig.of(pair[0])).save(draft)
    for plan in ("divprune:5", "fastv:50%@1"):
        alone = ask(noise(64, 64), "?", pair, plan, max_new_tokens=8)
        beside = ask(noise(64, 64), "?", pair, plan, max_new_tokens=8, draft=draft)
        assert (beside.text, beside.tokens, beside.plan) == (alone.text, alone.tokens, plan)
        assert beside.draft["tokens"] == 8 and alone.draft is None


def test_kept_is_clear_merged_is_tinted_dropped_is_pale():
    """A red image of 1 x 3 tokens: the first two are merged, the last one is dropped; then the first one is kept."""
    red = Image.new("RGB", (90, 30), (200, 0, 0))
    crops = (Crop(torch.arange(3), Grid(1, 3)),)

    def drawn(members):
        assignment = torch.tensor(members)
        selection = merge_tokens(torch.zeros(3, 2), torch.tensor([0]), assignment)
        steps = (StepReport("x:1", "pre_llm", 3, 1, 0.0),)
        report = ImageReport(0, "image", 0, ImageLayout(3, crops), selection, steps)
        document = selected(report)
        block = draw_selection(document, red, 1504)
        width = 1504 - 400 - 32
        return document, [block.getpixel((1 + round(width * part), 40 + 100)) for part in (1 / 6, 3 / 6, 5 / 6)]

    document, (first, second, third) = drawn([0, 0, -1])
    assert document["merged"] == [{"at": 0, "tokens": [0, 1]}] and document["dropped"] == [2]
    assert first == second != third and first != (200, 0, 0) and third[0] == third[1] == third[2]
    document, (first, second, third) = drawn([0, -1, -1])
    assert document["kept"] == [0] and first == (200, 0, 0) and second == third


def test_budgets_of_crops_are_drawn():
    grid = Grid(2, 2)
    crops = (
        Crop(torch.arange(4), grid, kind="thumbnail"),
        Crop(torch.arange(4, 8), grid, (0, 0, 0.5, 1), "tile"),
        Crop(torch.tensor([8, -1, 9, -1]), grid, (0.5, 0, 1.5, 1), "tile"),
    )
    selection = merge_tokens(
        torch.zeros(10, 2), torch.tensor([0, 4, 8]), torch.tensor([0, -1, -1, -1, 1, 1, 1, -1, 2, -1])
    )
    steps = (StepReport("x:3", "pre_llm", 10, 3, 0.0),)
    document = selected(ImageReport(0, "image", 0, ImageLayout(10, crops), selection, steps))
    assert [crop["kept"] for crop in document["crops"]] == [1, 1, 1]
    assert [crop["tokens"] for crop in document["crops"]] == [4, 4, 2]
    assert draw_selection(document, noise(100, 50), 1504).width == 1504


def test_tiles_that_are_images_of_their_own_find_their_places(tmp_path):
    internvl = load(save_internvl(tmp_path / "internvl"))
    image = noise(96, 64)  # two rows of three tiles, and a thumbnail
    answer = ask(image, "?", internvl, "divprune:5", max_new_tokens=2)
    crops = [crop for document in answer.selection for crop in document["crops"]]
    assert [crop["kind"] for crop in crops] == ["tile"] * 6 + ["thumbnail"]
    assert crops[4]["box"] == pytest.approx([1 / 3, 1 / 2, 2 / 3, 1]) and crops[6]["box"] == [0, 0, 1, 1]
    [whole] = joined(answer.selection)
    assert (whole["tokens_in"], whole["tokens_kept"], len(whole["dropped"])) == (7 * 16, 7 * 5, 7 * 11)
    assert sorted(whole["kept"] + whole["dropped"]) == list(range(7 * 16))
    assert whole["crops"][1]["index"] == list(range(16, 32)) and answer.selection[1]["kept"][0] < 16
    block = draw_selection(whole, image, 1504)
    scale = min((1504 - 400 - 32 - 332) / 96, 620 / 64)
    for number in (0, 4):  # a kept token has the colours of the image, a dropped one is grey
        row, column = divmod(number, 3)
        for kind in ("kept", "dropped"):
            token = max(answer.selection[number][kind])  # far from the number in the tile's first corner
            x, y = (column * 4 + token % 4 + 0.5) * 8 * scale, (row * 4 + token // 4 + 0.5) * 8 * scale
            red, green, blue = block.getpixel((1 + round(x), 64 + round(y)))
            assert (red == green == blue) == (kind == "dropped"), (number, kind)


def test_layers_inside_the_language_model_are_stages_and_stand_in_the_picture(tmp_path):
    image = Image.effect_noise((160, 160), 60).convert("RGB")
    answer = foveate.ask(image, "What is the total?", plan="uniform:16 + pyramiddrop:50%@1,3")
    assert [(stage.name, stage.tokens) for stage in answer.stages[-3:]] == [
        ("uniform:16", 16),
        ("layer 1", 8),
        ("layer 3", 4),
    ]
    assert answer.tokens.read == 16
    (image_of_plan,) = answer.selection
    first, second = (set(layer["kept"]) for layer in image_of_plan["layers"])
    assert second < first < set(image_of_plan["kept"])
    plain = foveate.ask(image, "What is the total?", plan="uniform:16").selection[0]

    def panel(document):
        return np.asarray(draw_selection(document, image, 1200).crop((0, 40, 600, 400))).astype(int)

    assert np.array_equal(panel(image_of_plan | {"layers": []}), panel(plain))
    assert (panel(image_of_plan) != panel(plain)).any()  # what leaves inside is paler


@pytest.mark.parametrize("size", [(41, 57), (480, 640), (900, 30)])
def test_tokens_lie_where_they_belong_on_images_that_are_padded(size):
    pytest.importorskip("torchvision")
    from transformers.models.kimi_k25.image_processing_kimi_k25 import Kimi_K25ImageProcessor

    images = Kimi_K25ImageProcessor(
        patch_size=4, merge_size=2, max_patches=1024, size={"max_height": 64, "max_width": 64}
    )
    white = Image.new("RGB", size, "white")
    made = images(white, return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    pixels = made["pixel_values"].view(rows, columns, 3, 4, 4).permute(2, 0, 3, 1, 4).reshape(3, rows * 4, columns * 4)
    shown = pixels.amax(dim=0) > 0  # padding is black
    down, across = int(shown.any(dim=1).sum()), int(shown.any(dim=0).sum())
    seen = seen_of(SimpleNamespace(image_processor=images), size)
    assert seen == (0.0, 0.0, columns * 4 / across, rows * 4 / down)
    layout = ImageLayout(6, (Crop(torch.arange(6), Grid(3, 2)),))
    report = ImageReport(0, "image", 0, layout, Selection(torch.arange(3)), (), ())
    assert draw_selection(selected(report, seen), white, 900).width == 900
