"""foveate needs no torchvision: it imports, reads an image and answers where torchvision is not installed."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from foveate.families import families
from tests.family_processors import save_processor
from tests.tiny_model import save_internvl

pytestmark = pytest.mark.xdist_group("without-torchvision")

COMMAND = "pip install 'foveate[video]'."
EXAMPLES = Path(__file__).parents[1] / "examples"

# Absent as a package that was never installed is absent: neither its module nor its metadata can be found.
ABSENT = """
import importlib.metadata
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] == "torchvision" else self.finder.find_spec(name, *rest)
    def find_distributions(self, *rest):
        for found in getattr(self.finder, "find_distributions", lambda *_: ())(*rest):
            if found.metadata["Name"] != "torchvision":
                yield found
    def invalidate_caches(self):
        getattr(self.finder, "invalidate_caches", lambda: None)()

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

try:
    importlib.metadata.version("torchvision")
except importlib.metadata.PackageNotFoundError:
    pass
else:
    sys.exit("torchvision is still found")
"""


def run_without_torchvision(code: str) -> str:
    """Standard output of a program in a process that has no torchvision."""
    done = subprocess.run(
        [sys.executable, "-c", ABSENT + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_is_really_absent_there():
    out = run_without_torchvision(
        """
        from transformers.utils import is_torchvision_available
        try:
            import torchvision
        except ModuleNotFoundError:
            print("absent", is_torchvision_available())
        """
    )
    assert out == "absent False\n"


def test_the_embedded_model_answers():
    out = run_without_torchvision(
        f"""
        import foveate
        answer = foveate.ask({str(EXAMPLES / "receipt.png")!r}, "What is the total?")
        print(type(foveate.load()[1].image_processor).__name__, "torchvision" in sys.modules, bool(answer.text))
        """
    )
    assert out == "LlavaUHDImageProcessor False True\n"


def test_views_are_cut():
    out = run_without_torchvision(
        """
        from PIL import Image
        from foveate.models.llava import ViewImageProcessor
        from foveate.models.llava.layouts import LlavaUHDLayout
        views = ViewImageProcessor(LlavaUHDLayout())(Image.new("RGB", (672, 1008)), return_tensors="pt")
        print(tuple(views["pixel_values"].shape), views["image_sizes"][-1].tolist())
        """
    )
    assert out == "(7, 3, 406, 336) [406, 266]\n"


#: Image processors of foveate are tested above; SmolVLM's asks for num2words, whether there is torchvision or not.
LEFT_OUT = {"foveate_llava", "llava_uhd", "smolvlm"}
KINDS = sorted({kind for family in families().values() for kind in family.model_types} - LEFT_OUT)
#: Whose processors transformers itself makes of torchvision, for images too.
ON_TORCHVISION = {kind for one in families().values() if one.needs_torchvision for kind in one.model_types} | (
    set() if Version(transformers.__version__) >= Version("5.24") else {"gemma4"}
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What a process without torchvision says of the processors of all families."""
    folder = tmp_path_factory.mktemp("processors")
    kinds = [kind for kind in KINDS if CONFIG_MAPPING[kind] in IMAGE_PROCESSOR_MAPPING]
    for kind in kinds:
        save_processor(kind, folder / kind)
    out = run_without_torchvision(
        f"""
        import json, pickle
        from pathlib import Path
        from PIL import Image
        from transformers import CONFIG_MAPPING
        from foveate.core.errors import FoveateError
        from foveate.processors import NoClips, load_processor

        def seen(kind, folder):
            try:
                processor = load_processor(str(folder), CONFIG_MAPPING[kind]())
            except FoveateError as error:
                return {{"error": str(error)}}
            values = processor.image_processor(Image.new("RGB", (64, 64), "red"), return_tensors="pt")
            said = {{"type": type(processor).__name__, "values": values["pixel_values"].numel(), "clips": None}}
            if isinstance(getattr(processor, "video_processor", None), NoClips):
                pickle.loads(pickle.dumps(processor)).save_pretrained(folder / "again")
                saved = json.loads((folder / "again" / "processor_config.json").read_text())
                said["settings"] = saved["video_processor"]
                try:
                    processor(text=f"a {{processor.video_token}}", videos=[[Image.new("RGB", (64, 64))] * 4])
                except FoveateError as error:
                    said["clips"] = str(error)
            return said

        print(json.dumps({{kind: seen(kind, Path({str(folder)!r}) / kind) for kind in {kinds!r}}}))
        """
    )
    return folder, json.loads(out.splitlines()[-1])


def test_processors_of_all_families_load_there(loaded):
    folder, said = loaded
    for kind, one in said.items():
        if kind in ON_TORCHVISION:
            assert one["error"].endswith("needs torchvision for its images too, which is not installed: " + COMMAND), (
                kind
            )
            continue
        settings = json.loads((folder / kind / "processor_config.json").read_text())
        assert one.get("type") == settings["processor_class"] and one["values"] > 0, (kind, one)
        assert one.get("settings") == settings.get("video_processor"), kind  # saving loses nothing
        if "video_processor" in settings:
            assert one["clips"] == "clips need torchvision, which is not installed: " + COMMAND, kind
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"} <= said.keys() - ON_TORCHVISION


def test_a_model_that_takes_clips_answers_there_about_an_image(tmp_path):
    folder = save_internvl(tmp_path)
    out = run_without_torchvision(
        f"""
        import foveate
        from PIL import Image
        image = Image.new("RGB", (64, 32), "red")
        answer = foveate.ask(image, "?", {str(folder)!r}, plan="divprune:8", max_new_tokens=2)
        print("torchvision" in sys.modules, answer.tokens.read)  # two tiles and a thumbnail
        """
    )
    assert out.splitlines()[-1] == "False 24"
