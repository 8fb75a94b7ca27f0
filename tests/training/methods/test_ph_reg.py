"""PH-Reg: registers are trained, outlier tokens go, and the folder is a tower."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BitImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlavaNextImageProcessor,
)

from foveate.commands.train_method import train_method
from foveate.core.errors import FoveateError
from foveate.models.encoders.registers import RegistersModel, norm_outliers, plant_outliers
from foveate.training.callbacks import StopRequest
from foveate.training.methods.ph_reg import PHRegTrainConfig, PHRegTrainer, distillation_loss, tokens_of, white
from foveate.training.methods.shared.images import pixels_of
from foveate.training.run_directory import RunDirectory

SIDE = 48
#: Patches, of 36, whose tokens are outliers in the constructed tower.
PLACES = (8, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random DINOv2 with planted outliers: no trained model with outliers is small enough for a test."""
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=SIDE, patch_size=8
    )
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    plant_outliers(Dinov2Model(config), PLACES).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def processor() -> Any:
    size = {"height": SIDE, "width": SIDE}
    return BitImageProcessor(size=size, crop_size=size, do_center_crop=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(24):
        coarse = Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def options(folder: Any, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"images": (folder,), "steps": 40, "batch_size": 4, "held_out": 8, "registers": 4}
    return fields | {"learning_rate": 1e-2, "last_learning_rate": 1e-3} | changes


def trainer(folder: Any, **changes: Any) -> PHRegTrainer:
    return PHRegTrainer(PHRegTrainConfig(**options(folder, **changes)))


def test_outliers_go_and_the_folder_is_a_tower(folder, images, tmp_path, capsys):
    output = tmp_path / "registers"
    train_method("ph-reg", output, model=str(folder), as_json=True, **options(images))
    document = json.loads(capsys.readouterr().out)
    before, after = (document["measured"][name] for name in ("before", "after"))
    assert before["outliers"] == pytest.approx(2 / 36, abs=1e-4) and before["largest_norm"] > 6
    assert after["outliers"] == 0 and after["largest_norm"] < 2
    assert after["similarity"] > before["similarity"]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "registers.run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 40 and losses[-1] < 0.7 * losses[0]
    model = AutoModel.from_pretrained(output).eval()
    assert type(model) is RegistersModel and model.config.num_registers == 4
    with torch.no_grad():
        tokens = tokens_of(model, pixels_of(processor(), sorted(images.iterdir())), -1, normalize=False)
    assert norm_outliers(tokens).share == 0
    assert BitImageProcessor.from_pretrained(output).size == {"height": SIDE, "width": SIDE}


def test_unlocked_parts_alone_are_trained(folder, images, tmp_path):
    method = trainer(images, steps=2)
    model, reader = method.load(str(folder), "cpu")
    before = {name: value.clone() for name, value in model.state_dict().items() if name != "registers.weight"}
    state = method.fit(model, reader, method.data(), RunDirectory(tmp_path / "out", method.about()))
    after = state.network.student.state_dict()
    changed = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    parts = ("registers.", "tower.embeddings.patch_embeddings.", "tower.embeddings.position_embeddings")
    parts = (*parts, "tower.encoder.layer.1.")
    unlocked = {name for name in after if name.startswith(parts)}
    assert changed == unlocked
    assert {name.replace("/", ".") for name in state.network.state_dict()} == unlocked
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())  # the teacher


def test_another_hidden_state_unlocks_its_block(folder, images):
    method = trainer(images, layer=-2)
    network = method.network(method.load(str(folder), "cpu")[0])
    assert any("/layer/0/" in name for name in network.state_dict())
    assert not any("/layer/1/" in name for name in network.state_dict())


@pytest.mark.parametrize("layer", [-1, 1])
def test_without_registers_and_with_one_view_the_loss_is_zero(folder, images, layer):
    method = trainer(images, registers=0, views=1, layer=layer)
    model, reader = method.load(str(folder), "cpu")
    ((_, compute),) = method.step(model, reader, method.network(model), method.data(), 0)
    assert float(compute().detach()) == pytest.approx(0, abs=1e-5)


def test_a_resumed_run_gives_the_same_weights(folder, images, tmp_path):
    method = trainer(images, steps=6)
    model, reader = method.load(str(folder), "cpu")
    complete = method.fit(model, reader, method.data(), RunDirectory(tmp_path / "one", method.about()))
    stop, run = StopRequest(), RunDirectory(tmp_path / "two", method.about())

    def stops(stage: str, done: int, total: int, loss: float | None) -> None:
        if done == 3:
            stop.request()

    assert method.fit(model, reader, method.data(), run, stops, stop).step == 3
    resumed = method.fit(model, reader, method.data(), run)
    assert resumed.finished
    for name, value in complete.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_rendered_images_and_clip(tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16}
    CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path / "clip")
    processor().save_pretrained(tmp_path / "clip")
    small = {"steps": 2, "batch_size": 1, "held_out": 2, "views": 2, "layer": -2}
    train_method("ph-reg", tmp_path / "out", model=str(tmp_path / "clip"), **small)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 steps, 2 samples. On 2 held-out images: before: 0.00 % outlier tokens" in printed
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_registers == 16


def test_every_tile_of_an_image_has_its_views(folder, images, tmp_path):
    size = {"height": SIDE, "width": SIDE}
    pinpoints = [[SIDE, SIDE], [SIDE, 2 * SIDE]]
    tiles = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=size, image_grid_pinpoints=pinpoints, do_convert_rgb=True
    )
    method = trainer(images, steps=1, batch_size=3)
    model, _ = method.load(str(folder), "cpu")
    run = RunDirectory(tmp_path / "out", method.about())
    assert len(pixels_of(tiles, method.data().measured()[:3])) > 3
    assert method.fit(model, tiles, method.data(), run).finished


def test_the_learning_rate_falls_exponentially_with_every_step():
    config = PHRegTrainConfig(steps=101)
    rates = [config.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4) and rates[-1] == pytest.approx(5e-6)
    assert np.allclose(np.diff(np.log(rates)), np.log(0.05) / 100)


def test_the_loss_equals_a_loop():
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    similarities, errors = [], []
    for ours, theirs in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        similarities.append(float(ours @ theirs / (ours.norm() * theirs.norm())))
        errors += [float((a - b) ** 2) for a, b in zip(ours, theirs, strict=True)]
    expected = 1 - sum(similarities) / 6 + sum(errors) / 24
    assert float(distillation_loss(student, teacher)) == pytest.approx(expected, abs=1e-5)


def test_what_is_outside_of_an_image_is_white():
    reader = processor()
    pixels = reader(images=[Image.new("RGB", (SIDE, SIDE), "white")], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(white(reader), pixels[0, :, 5, 5])
    reader.do_normalize = False
    assert torch.equal(white(reader), torch.ones(3))


def test_bad_input(folder, images, tmp_path):
    output = tmp_path / "out"
    for changes, message in (
        ({"learning_rate": 1e-4}, "last_learning_rate must be above 0 and at most learning_rate"),
        ({"shift": 1.0}, "shift is a share of the image"),
        ({"views": 0}, "views must be 1 or more"),
        ({"registers": -1}, "registers must be 0 or more"),
        ({"held_out": 24}, "there are 24 images, and 24 are held out"),
        ({"layer": 3}, "layer must be from 1 to 2, or from -2 to -1"),
        ({"layer": 0}, "layer must be from 1 to 2"),
        ({"images": (tmp_path / "none",)}, "there is no image or folder"),
    ):
        with pytest.raises(FoveateError, match=message):
            train_method("ph-reg", output, model=str(folder), **options(images, **changes))
        (output.with_name("out.run") / "about.json").unlink(missing_ok=True)
    with pytest.raises(FoveateError, match="say whose encoder"):
        train_method("ph-reg", output, **options(images))
    assert not output.exists()


def test_held_out_files_are_part_of_what_a_run_is(tmp_path):
    """A run that is finished could else be measured on files that it was trained on."""
    for number in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")

    def about(**options: Any) -> dict[str, Any]:
        return PHRegTrainer(PHRegTrainConfig(**options)).about()

    one = about(images=(tmp_path,), held_out=2)
    assert about(images=(tmp_path,), held_out=2) == one != about(images=(tmp_path,), held_out=3)
    Image.new("RGB", (8, 8)).save(tmp_path / "6.png")
    assert about(images=(tmp_path,), held_out=2) != one
    assert about(held_out=2) == about(held_out=3)  # rendered pages have a split of their own
