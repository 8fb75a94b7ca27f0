"""`foveate ask` and `foveate info` as they are typed: what is printed, and what is said when it cannot work."""

import json
from pathlib import Path

import pytest
from PIL import Image

import foveate.loading
from foveate.answering import ask
from foveate.cli import main
from foveate.commands.ask import printable
from tests.tiny_model import noise, save_llava, save_llava_uhd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_llava_uhd(tmp_path_factory.mktemp("model")))


@pytest.fixture
def image(tmp_path):
    noise(64, 50).save(tmp_path / "noise.png")
    return str(tmp_path / "noise.png")


def test_ask_prints_the_answer_and_its_account(capsys, folder, image):
    assert main(["ask", image, "What is it?", "--model", folder, "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    expected = ask(image, "What is it?", folder, max_new_tokens=4)
    assert printable(expected.text) in out
    assert "64 x 50 px, resized to 64 x 48" in out
    assert "reads 12 of the image; and" in out
    for part in ("preprocess", "encoder", "connector", "prefill", "decode", "12 x 16", "6 x 8", "3 x 4"):
        assert part in out


def test_ask_as_json_with_a_picture(capsys, folder, image, tmp_path):
    target = tmp_path / "out.png"
    assert main(["ask", image, "What is it?", "--model", folder, "--json", "--picture", str(target)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [stage["tokens"] for stage in document["stages"]] == [192, 48, 12]
    assert document["tokens"]["read"] == 12 and document["picture"] == str(target)
    assert set(document["times"]) == {"preprocess", "encoder", "connector", "prefill", "decode", "total"}
    with Image.open(target) as picture:
        assert picture.width == 1600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "?"], "no image file at 'none.png'"),
        (["IMAGE", " "], "question is empty"),
        (["IMAGE", "?", "--plan", "divprun:64"], "did you mean divprune"),
        (["IMAGE", "?", "--picture", "out.txt"], "must end in .png"),
        (["IMAGE", "?", "--picture", "/no/such/folder/out.png"], "there is no folder"),
        (["IMAGE", "?", "--model", "/no/such/model"], "there is no folder '/no/such/model'"),
        (["IMAGE", "?", "--max-new-tokens", "0"], "Invalid value"),
        (["IMAGE"], "question"),
        ([], "an image and a question"),
        (["IMAGE", "none.png", "?"], "no image file at 'none.png'"),
        (["IMAGE", "IMAGE", "?", "--picture", "out.png"], "--picture shows one image"),
        (["IMAGE", "clip.mp4", "?"], "no video file at 'clip.mp4'"),
        (["data:image/png;base64,@", "?"], "holds no base64"),
        (["http://[::1/a.png", "?"], "is not an address"),
        (["IMAGE", "?", "--system", ""], "system prompt is empty"),
        (["IMAGE", "?", "--revision", "main"], "is a folder"),
        (["IMAGE", "?", "--device", "cpu", "--device-map", "auto"], "give one of them"),
        (["IMAGE", "?", "--attn-implementation", "slow"], "not supported"),
        (["--example", "receit", "?"], "did you mean receipt? possible are chart, form, receipt"),
        (["--example", "chart"], "question about the example is missing, such as 'Which bar"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, folder, image, arguments, message):
    arguments = [image if argument == "IMAGE" else argument for argument in arguments]
    model = [] if "--model" in arguments else ["--model", folder]
    assert main(["ask", *arguments, *model]) == 2
    error = capsys.readouterr().err.strip()
    assert message.lower() in error.lower()
    assert "\n" not in error and "Traceback" not in error
    assert main(["ask", *arguments, *model, "--json"]) == 2
    assert message.lower() in json.loads(capsys.readouterr().out)["error"].lower()


def test_ask_about_several_images_with_a_system_prompt(capsys, folder, image):
    line = ["ask", image, image, "Which?", "--model", folder, "--max-new-tokens", "4"]
    assert main([*line, "--system", "Be brief."]) == 0
    out = capsys.readouterr().out
    assert "images    64 x 50, 64 x 50 px" in out and "reads 24 of the images" in out
    assert main([*line, "--json", "--dtype", "bfloat16", "--device-map", "cpu", "--attn-implementation", "eager"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["image_sizes"] == [[64, 50], [64, 50]] and document["image_size"] is None
    assert document["text"] == ask([image, image], "Which?", folder, max_new_tokens=4, dtype="bfloat16").text


def test_ask_about_an_example(capsys, folder):
    assert main(["ask", "--example", "chart", "Which month?", "--model", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_sizes"] == [[520, 400]]
    for line in (["--example"], ["--example", "list"]):
        assert main(["ask", *line]) == 0
        assert "foveate ask --example receipt 'What is the total?'" in capsys.readouterr().out
    assert main(["ask", "--example", "--json"]) == 0
    examples = json.loads(capsys.readouterr().out)["examples"]
    assert [row["name"] for row in examples] == ["receipt", "form", "chart"]
    assert all(Path(row["path"]).is_file() for row in examples)


def test_control_characters_are_shown_and_not_obeyed():
    assert printable("a\x1b[2J\x07b\nc") == "a\ufffd[2J\ufffdb\nc"


def test_info_as_json(capsys, folder):
    assert main(["info", folder, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    model, _ = foveate.loading.load(folder)
    assert document["parameters"]["total"] == model.num_parameters()
    assert document["parameters"]["vision"] == model.model.vision_tower.num_parameters()
    parts = ("vision", "connector", "language_model", "output_layer")
    assert sum(document["parameters"][part] for part in parts) == model.num_parameters()
    assert document["vision"]["pixels_per_token"] == [16, 16]
    assert [stage["after_block"] for stage in document["vision"]["stages"]] == [1, 2]
    assert {"image": [1024, 1024], "seen_at": [64, 64], "patches": 256, "tokens": 16} in document["image_tokens"]
    assert "evaluation" not in document


def test_info_shows_the_records_of_a_folder(capsys, tmp_path):
    folder = save_llava_uhd(tmp_path)
    tasks = [{"task": "read a word", "questions": 500, "accuracy": 0.912, "interval": [0.884, 0.934], "majority": 0.01}]
    (folder / "evaluation.json").write_text(json.dumps({"command": "foveate ...", "tasks": tasks}))
    stages = {"read": {"steps": 4000, "cell_loss": 0.78}, "answer": {"steps": 800, "answer_loss": 0.5}}
    record = {"steps": 44000, "seconds": 28282.25, "recipe": "recipes/tiny.yaml", "stages": stages}
    (folder / "training.json").write_text(json.dumps(record))
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    for text in (
        "read a word",
        "0.912",
        "0.884",
        "44,000",
        "28,282",
        "recipes/tiny.yaml",
        "content-adaptive",
        "16 x 16",
    ):
        assert text in out
    assert ["answer", "800", "0.5"] in [line.split() for line in out.splitlines()]  # a row for each stage
    (folder / "evaluation.json").write_text("{broken")
    assert main(["info", str(folder)]) == 2
    assert "evaluation.json' cannot be read as JSON" in capsys.readouterr().err


def test_info_of_another_model(capsys, tmp_path):
    assert main(["info", str(save_llava(tmp_path)), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["type"] == "llava"
    assert document["image_tokens"][0] == {"image": [224, 224], "tokens": 64}


def test_info_without_an_embedded_model(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(foveate.loading, "EMBEDDED", tmp_path)
    assert main(["info"]) == 2
    assert "holds no weights" in capsys.readouterr().err
