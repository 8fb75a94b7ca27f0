"""Training the next-scale model: pictures, the moving codebook, a run that was stopped, recipes."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from foveate import cli
from foveate.core.errors import FoveateError
from foveate.synthetic import class_pictures
from foveate.training.callbacks import StopRequest
from foveate.training.next_scale import CodeAverages, Recipe, measure, rate, read_recipe, tokenizer_loss, train
from foveate.training.run_directory import RunDirectory
from tests.models.next_scale.small_next_scale import small_config, small_model

RECIPE = Recipe(tokenizer_steps=3, tokenizer_batch_size=4, steps=3, batch_size=2)


def test_pictures_are_the_same_again_and_splits_differ() -> None:
    one, labels = class_pictures.batch(range(17), 16)
    again, _ = class_pictures.batch(range(17), 16)
    held_out, same_labels = class_pictures.batch(range(17), 16, "held-out")
    assert one.shape == (17, 3, 16, 16) and torch.equal(one, again)
    assert labels.tolist() == [*range(16), 0] == same_labels.tolist()
    assert not torch.equal(one, held_out) and not torch.equal(one[0], one[16])
    assert float(one.min()) >= -1 and float(one.max()) <= 1
    with pytest.raises(FoveateError, match="the splits are"):
        class_pictures.draw(0, 16, "test")


def test_classes_are_what_they_say() -> None:
    for number in range(16):
        image, label = class_pictures.draw(number, 64)
        red, green, blue = image.getpixel(_middle(image))
        name = class_pictures.CLASSES[label]
        assert name.startswith("red") == (red > 150 and green < 100)
        assert name.startswith("blue") == (blue > 150 and red < 100)
        assert name.startswith("yellow") == (red > 150 and green > 150 and blue < 100)


def _middle(image) -> tuple[int, int]:
    """The mean place of what differs from the paper."""
    pixels = torch.from_numpy(np.array(image)).int()
    rows, columns = ((pixels - pixels[0, 0]).abs().sum(dim=2) > 60).nonzero(as_tuple=True)
    return int(columns.float().mean()), int(rows.float().mean())


def test_images_come_back() -> None:
    image, _ = class_pictures.draw(3, 16)
    (again,) = class_pictures.to_images(class_pictures.batch([3], 16)[0])
    assert again.tobytes() == image.tobytes()


def test_codes_are_moving_averages() -> None:
    codebook = torch.zeros(2, 1)
    averages, chance = CodeAverages(codebook), torch.Generator().manual_seed(0)
    averages.begin(torch.tensor([[1.0], [1.0]]), chance)
    cells, ids = torch.tensor([[3.0], [5.0], [9.0], [1.0]]), torch.tensor([0, 0, 0, 1])
    averages.update(cells, ids, chance)
    # Shares of the batch times two codes: 1.5 and 0.5.
    first = (0.98 * 1 + 0.02 * (3 + 5 + 9) / 2) / (0.98 + 0.02 * 1.5)
    second = (0.98 * 1 + 0.02 * 1 / 2) / (0.98 + 0.02 * 0.5)
    assert codebook.flatten().tolist() == pytest.approx([first, second])


def test_a_code_that_nothing_chooses_begins_anew() -> None:
    codebook = torch.zeros(2, 1)
    averages, chance = CodeAverages(codebook), torch.Generator().manual_seed(0)
    averages.begin(torch.tensor([[1.0]]), chance)
    cells, ids = torch.full((4, 1), 7.0), torch.zeros(4, dtype=torch.long)
    for _ in range(400):
        averages.update(cells, ids, chance)
    assert codebook.flatten().tolist() == pytest.approx([7.0, 7.0], abs=0.05)


def test_the_tokenizer_s_loss_reaches_all_its_parts() -> None:
    model = small_model()
    loss, cells, ids = tokenizer_loss(model, torch.rand(2, 3, 16, 16))
    loss.backward()
    assert cells.shape == (60, 3) and ids.shape == (60,)
    trained = [p for p in model.tokenizer.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate(1.0, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < sooner for sooner, later in itertools.pairwise(rates[5:])) and rates[-1] > 0


def test_a_run_that_was_stopped_gives_the_same_weights(tmp_path) -> None:
    config = small_config(num_classes=16)
    whole, finished = train(config, RECIPE, RunDirectory(tmp_path / "whole", {}))
    assert finished
    for wanted in (2, 5, 6):  # within both stages, and at the end
        stop, steps = StopRequest(), 0

        def on_progress(stage: str, step: int, of: int, loss: float, stop=stop, wanted=wanted) -> None:
            nonlocal steps
            if (step if stage == "tokenizer" else 3 + step) == wanted:
                stop.request()

        parts, finished = train(config, RECIPE, RunDirectory(tmp_path / "parts", {}), on_progress, stop)
        assert finished == (wanted == 6)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    assert whole.config.class_names == list(class_pictures.CLASSES)
    assert set(measure(whole, 4)) == {"reconstruction", "nats", "codes_used"}


def test_settings_that_cannot_be_are_refused(tmp_path) -> None:
    with pytest.raises(FoveateError, match="must be 16"):
        train(small_config(), RECIPE, RunDirectory(tmp_path / "run", {}))
    for field, message in (("steps", "1 or more"), ("learning_rate", "greater than 0"), ("class_dropout", "less than")):
        with pytest.raises(FoveateError, match=message):
            dataclasses.replace(RECIPE, **{field: -1})


def test_recipes(tmp_path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"model": {"hidden_size": 32}, "training": {"steps": 7}}))
    config, recipe = read_recipe(path)
    assert (config.hidden_size, recipe.steps) == (32, 7)
    for text, message in (
        ("[1]", "no recipe"),
        ("{", "no recipe"),
        ('{"model": {"width": 3}}', "no setting 'width' in 'model'"),
        ('{"more": {}}', "possible are model and training"),
        ('{"training": {"steps": 1.5}}', "training.steps: expected a whole number"),
        ('{"training": {"learning_rate": "fast"}}', "training.learning_rate: expected a number"),
        ('{"model": {"hidden_size": "x"}}', "model: "),
    ):
        path.write_text(text)
        with pytest.raises(FoveateError, match=message):
            read_recipe(path)


def test_the_command_stops_goes_on_and_writes_a_model(tmp_path, capsys) -> None:
    from foveate.models.next_scale import NextScaleForImageGeneration

    recipe = tmp_path / "recipe.json"
    model = {"image_size": 16, "scales": [1, 2, 4], "hidden_size": 16, "num_hidden_layers": 1, "tokenizer_width": 4}
    recipe.write_text(json.dumps({"model": model, "training": dataclasses.asdict(RECIPE)}))
    line = ["train-next-scale", "-o", str(tmp_path / "model"), "--recipe", str(recipe), "--json"]
    assert cli.main([*line, "--minutes", "1e-9"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert cli.main(line) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and document["held_out"]["nats"] > 0
    loaded = NextScaleForImageGeneration.from_pretrained(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["held_out"] == document["held_out"] and record["training"]["steps"] == 3
    assert sum(p.numel() for p in loaded.parameters()) == document["parameters"]
    for wrong, message in ((["--minutes", "0"], "above 0"), (["--no-resume"], "contains a run already")):
        assert cli.main([*line, *wrong]) == 2
        assert message in json.loads(capsys.readouterr().out)["error"]
    assert cli.main(["train-next-scale"]) == 2
