"""DyMU's thresholds: a file that a plan can use."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaModel

from foveate.commands.train_method import train_method
from foveate.core.errors import FoveateError
from foveate.methods.encoder.dymu import DyMU, Thresholds
from foveate.runtime.vision_merging import merging
from foveate.training.callbacks import StopRequest
from foveate.training.methods.dymu import DyMUTrainConfig, DyMUTrainer

VISION = CLIPVisionConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(VISION).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_the_file_can_be_used(folder, images, tmp_path, capsys):
    output = tmp_path / "thresholds.json"
    train_method("dymu", output, model=str(folder), images=(images,), count=6, batch_size=2, as_json=True)
    document = json.loads(capsys.readouterr().out)
    found = Thresholds.load(output)
    assert document["thresholds"] == list(found.values) and len(found.values) == 3
    assert (found.patches, found.count, found.images, found.encoder) == (16, 6, 5, "CLIPVisionModel")
    tower = CLIPVisionModel.from_pretrained(folder)
    with torch.no_grad(), merging(tower, DyMU(str(output))) as active:
        tower(torch.randn(2, 3, 32, 32))
        assert all(len(selection) <= 16 for selection in active.selections)


def test_of_a_whole_model_the_block_that_is_read(folder, images, tmp_path, capsys):
    text = {"model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlavaConfig(vision_config=VISION.to_dict(), text_config=text, vision_feature_layer=-2, image_token_id=19)
    LlavaModel(config).save_pretrained(tmp_path / "llava")
    (tmp_path / "llava" / "preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    two = (images / "0.png", images / "1.png")
    train_method("dymu", tmp_path / "out.json", model=str(tmp_path / "llava"), images=two, count=8)
    assert len(Thresholds.load(tmp_path / "out.json").values) == 2
    assert "16 tokens to 8" in capsys.readouterr().out.replace("\n", " ")


def test_bad_input(folder, images, tmp_path):
    with pytest.raises(FoveateError, match="no images there"):
        train_method("dymu", tmp_path / "out.json", model=str(folder), images=(tmp_path,), count=6)
    with pytest.raises(FoveateError, match="no image or folder"):
        train_method("dymu", tmp_path / "out.json", model=str(folder), images=(tmp_path / "none.png",), count=6)
    with pytest.raises(FoveateError, match="there is no folder"):
        train_method("dymu", tmp_path / "none" / "out.json", model=str(folder), images=(images,), count=6)
    with pytest.raises(FoveateError, match="not 17"):
        train_method("dymu", tmp_path / "out.json", model=str(folder), images=(images,), count=17)
    with pytest.raises(FoveateError, match="say whose encoder"):
        train_method("dymu", tmp_path / "out.json", images=(images,), count=6)
    with pytest.raises(FoveateError, match="inflect lies between"):
        train_method("dymu", tmp_path / "out.json", images=(images,), count=6, inflect=2.0)
    assert not (tmp_path / "out.json").exists()


def test_a_stopped_one_is_interrupted(folder, images):
    trainer, stop = DyMUTrainer(DyMUTrainConfig(images=(images,), count=6)), StopRequest()
    stop.request()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(*trainer.load(str(folder), "cpu"), trainer.data(), stop=stop)
