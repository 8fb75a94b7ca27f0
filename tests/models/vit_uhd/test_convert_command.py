"""`foveate convert`: writes a whole folder or nothing, says what it did, refuses in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from foveate import ViTUHDModel, cli
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.vit_uhd.conversion import from_vit
from tests.models.vit_uhd.towers import build


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A saved Qwen2.5-VL of four blocks, patch 6."""
    folder = tmp_path_factory.mktemp("source")
    build("qwen2_5_vl").save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["convert", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_folder_holds_the_model_and_its_image_processor(run, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "vit"
    code, out, err = run(
        source, output, "--patch-size", 4, "--stages", "2,0", "--method", "average,early", "--mode", "bicubic",
        "--kernel", "adjoint", "--no-antialias", "--rope", "hierarchical", "--final-norm", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    expected = from_vit(
        source,
        4,
        [0, 2],
        ["early", "average"],
        resize_mode="bicubic",
        resize_antialias=False,
        resize_method="adjoint",
        rope_layout="hierarchical",
        final_norm=True,
    )
    model = AutoModel.from_pretrained(output)
    assert isinstance(model, ViTUHDModel)
    assert model.config.to_diff_dict() == {**expected.config.to_diff_dict(), "dtype": "float32"} | {
        "architectures": ["ViTUHDModel"]
    }
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    processor = AutoImageProcessor.from_pretrained(output)
    assert isinstance(processor, LlavaUHDImageProcessor)
    assert (processor.patch_size, processor.num_stages, processor.unit) == (4, 2, 16)
    assert tuple(processor.image_mean) == (0.48145466, 0.4578275, 0.40821073)  # Qwen's, not 0.5
    assert [path.name for path in output.parent.iterdir()] == ["vit"]  # nothing half-written next to it

    document = json.loads(out)
    assert document["family"] == "Qwen2.5-VL"
    assert document["kernel"] == {"method": "adjoint", "mode": "bicubic", "antialias": False}
    assert document["before"]["stages"] == []
    assert document["before"]["tokens"] == (1024 // 6) ** 2
    assert document["after"] == {
        "patch_size": 4,
        "stages": [{"after_block": 0, "method": "early"}, {"after_block": 2, "method": "average"}],
        "unit": 16,
        "parameters": model.num_parameters(),
        "tokens": 64**2,
    }


def test_the_summary_for_people(run, source: Path, tmp_path: Path) -> None:
    code, out, _ = run(source, tmp_path / "vit", "--stages", "1")
    assert code == 0
    for said in ("Qwen2.5-VL", "after block 1: content-adaptive", "28,900", "7,225"):
        assert said in out
    assert "resized" not in out


def test_the_sources_own_normalisation_is_kept(run, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]})
    )
    assert run(folder, tmp_path / "vit")[0] == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
    assert tuple(processor.image_std) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "one"], "'one' is not a list of block numbers"),
        (["--stages", "9"], "between 0 and 3"),
        (["--stages", "1", "--method", "maximum"], "content-adaptive, average, early"),
        (["--stages", "0,1", "--method", "average,early,average"], "one per stage"),
        (["--mode", "nearest"], "'bilinear', 'bicubic'"),
        (["--patch-size", "0"], "greater than or equal to 1"),
        (["--patch-size", "9999"], "1 to 256 pixels"),
    ],
)
def test_bad_input_leaves_nothing_behind(run, source: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    code, out, err = run(source, tmp_path / "vit", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_there(run, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "missing", tmp_path / "vit")
    assert code == 2
    assert "neither a folder with a config.json nor a model" in err


def test_an_existing_folder_is_never_touched(run, source: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    code, _, err = run(source, tmp_path)
    assert code == 2
    assert "exists already" in err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failure_while_writing_leaves_nothing_behind(run, source: Path, tmp_path: Path, monkeypatch) -> None:
    def full(self, folder: Path, **_: object) -> None:
        (Path(folder) / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlavaUHDImageProcessor, "save_pretrained", full)
    code, _, err = run(source, tmp_path / "vit")
    assert code == 2
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []
