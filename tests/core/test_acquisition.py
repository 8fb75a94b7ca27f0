"""Tool calls of models are read strictly; boxes, sizes and prompts are those of the papers."""

from __future__ import annotations

import json

import pytest

import foveate
from foveate import FoveateError
from foveate.core.acquisition import Prompts, ToolCallError, answer_in, calls_again, split_acquisition
from foveate.core.plan import Plan
from foveate.methods.acquisition.adaptvision import AdaptVision
from foveate.methods.acquisition.visionthink import VisionThink
from tests.refusals import refused
from tests.tiny_model import save_llava_uhd

SIZE = (641, 480)


def call(name: str, arguments: object) -> str:
    return f"<think>t</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def crop(*box: object) -> str:
    return call("request_local_region", {"bbox_2d": list(box)})


def test_the_reduced_image() -> None:
    method = VisionThink()
    assert method.reduced_size(SIZE) == (320, 240)  # rounded down
    assert method.reduced_size((100, 40)) == (70, 28)  # not below 28 pixels
    assert VisionThink(least_side=1).reduced_size((100, 40)) == (50, 20)
    assert VisionThink(least_side=1).reduced_size((1, 1)) == (1, 1)


def test_valid_calls() -> None:
    assert VisionThink().read_call("<think>t</think><answer>7</answer>", SIZE) is None
    found = VisionThink().read_call(call("resize_image", {"action": "resize"}), SIZE)
    assert found is not None and found.box == (0, 0, 641, 480)
    method = AdaptVision()
    for box, expected in {
        (10, 20, 100, 60): (20, 40, 200, 120),  # times two
        (-5, 0, 400, 240): (0, 0, 640, 480),  # clamped to the image that was shown, as in the authors' code
        (0, 0, 320, 240): (0, 0, 640, 480),  # everything is possible
    }.items():
        found = method.read_call(crop(*box), SIZE)
        assert found is not None and found.box == expected
    # An image that was enlarged to the least side: boxes are in what was shown, 70 x 28 of 100 x 40.
    found = method.read_call(crop(7, 7, 70, 28), (100, 40))
    assert found is not None and found.box == (10, 10, 100, 40)
    assert found.as_json() == {
        "name": "request_local_region",
        "arguments": {"bbox_2d": [7, 7, 70, 28]},
        "box": [10, 10, 100, 40],
    }


@pytest.mark.parametrize(
    ("method", "text", "sentence"),
    [
        (VisionThink(), "<tool_call>{}", "has no end; if it was cut off, allow more new tokens"),
        (VisionThink(), "</tool_call>{}<tool_call>", "not enclosed in one <tool_call>"),
        (VisionThink(), call("resize_image", {"action": "resize"}) * 2, "not enclosed in one <tool_call>"),
        (VisionThink(), call("resize_image", {"action": "resize"}) + "<answer>7</answer>", "answers and calls a tool"),
        (VisionThink(), "<tool_call>resize</tool_call>", "is not JSON: 'resize'"),
        (VisionThink(), "<tool_call>" + "[" * 10_000 + "</tool_call>", "is not JSON"),
        (VisionThink(), "<tool_call>[1]</tool_call>", 'a JSON object with "name" and "arguments"'),
        (VisionThink(), '<tool_call>{"name": "resize_image"}</tool_call>', 'with "name" and "arguments"'),
        (VisionThink(), call("resize_image", [1]), 'with "name" and "arguments"'),
        (VisionThink(), crop(0, 0, 1, 1), "calls the tool 'request_local_region'; possible is 'resize_image'"),
        (VisionThink(), call("resize_image", {}), "takes the arguments action and no others"),
        (VisionThink(), call("resize_image", {"action": "resize", "times": 2}), "takes the arguments action and no"),
        (VisionThink(), call("resize_image", {"action": "zoom"}), "has the action 'resize' alone, not 'zoom'"),
        (AdaptVision(), crop(0, 0, 1), "takes a box of four whole numbers, not \\[0, 0, 1\\]"),
        (AdaptVision(), crop(0.5, 0, 10, 10), "takes a box of four whole numbers"),
        (AdaptVision(), crop(0, 0, True, 10), "takes a box of four whole numbers"),
        (AdaptVision(), call("request_local_region", {"bbox_2d": "all"}), "takes a box of four whole numbers"),
        (AdaptVision(), crop(400, 0, 500, 10), "is empty in the image of 320 x 240 pixels that it was shown"),
        (AdaptVision(), crop(10**400, 0, 5, 10), "is empty in the image"),
        (AdaptVision(), crop(50, 10, 10, 50), "is empty in the image"),
        (AdaptVision(), crop(0, 0, 320, 1), "whose sides are as 1 to 320; at most 200 is possible"),
    ],
)
def test_impossible_calls_end_in_a_sentence(method, text: str, sentence: str) -> None:
    with pytest.raises(ToolCallError, match=sentence) as error:
        method.read_call(text, SIZE)
    assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")


def test_answers() -> None:
    assert answer_in("<think>t</think> <answer> 7\n</answer>") == "7"
    assert answer_in(" 7 ") == "7"
    assert answer_in("<answer>7</answer><answer>8</answer>").startswith("<answer>")
    assert calls_again("<tool_call>") and not calls_again("<answer>7</answer>")


def test_prompts(tmp_path) -> None:
    prompts = Prompts("s", "q {question}", "before {image} after")
    assert prompts.asked("{image}?") == "q {image}?" and prompts.around_second() == ("before", "after")
    prompts.save(tmp_path)
    assert VisionThink().resolve_weights(tmp_path).read_prompts() == prompts
    assert VisionThink().resolve_weights("").read_prompts() == VisionThink.default_prompts
    file = tmp_path / "foveate_acquisition.json"
    named = VisionThink(prompts=str(file))
    assert named.resolve_weights("").read_prompts() == prompts
    assert Plan.of(str(Plan.of(named))).steps[0].method == named
    assert str(Plan.of(VisionThink().resolve_weights(tmp_path))) == "visionthink"
    file.write_text('{"system": "s"}')
    with pytest.raises(FoveateError, match="holds no prompts of an acquisition: it must be an object with"):
        VisionThink(prompts=str(file)).read_prompts()
    with pytest.raises(FoveateError, match="holds no prompts"):
        VisionThink(prompts=str(tmp_path / "none.json")).read_prompts()
    with pytest.raises(FoveateError, match=r"'second' of an acquisition must contain \{image\} once"):
        Prompts("", "{question}", "no image")


def test_the_default_prompts_describe_the_tool() -> None:
    for cls in (VisionThink, AdaptVision):
        text = cls.default_prompts.system
        schema = json.loads(text.partition("<tools>\n")[2].partition("\n</tools>")[0])
        assert schema["function"]["name"] == cls.tool and schema["function"]["parameters"] == cls.parameters


def test_a_plan_is_divided() -> None:
    method, rest = split_acquisition(Plan.of("visionthink + divprune:50%"))
    assert isinstance(method, VisionThink) and str(rest) == "divprune:50%"
    assert split_acquisition(Plan.of("adaptvision"))[1] is None
    assert split_acquisition(Plan.of("divprune:50%")) == (None, Plan.of("divprune:50%"))
    assert split_acquisition(None) == (None, None)
    for text in ("divprune:50% + visionthink", "visionthink + adaptvision"):
        with pytest.raises(FoveateError, match="it must come first in a plan, and once"):
            split_acquisition(Plan.of(text))


@pytest.mark.parametrize(
    ("arguments", "sentence"), [({"reduction": 1}, "reduction must be 2"), ({"least_side": 0}, "1 or")]
)
def test_impossible_arguments(arguments, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        VisionThink(**arguments)
    with pytest.raises(FoveateError, match="takes no budget"):
        Plan.of("visionthink:25%")


def test_a_live_model_refuses_them(tmp_path) -> None:
    model, _ = foveate.load(save_llava_uhd(tmp_path))
    with refused("needs-two-turns", "use foveate.ask\\(image, question, model, 'visionthink'\\)"):
        foveate.compress(model, "visionthink")
    with refused("needs-two-turns"):
        foveate.compress(model, "divprune:50% + adaptvision")
