"""Arguments that a plan may have and nobody means: an answer or one sentence, no failure and no memory without end."""

import pytest
from PIL import Image

from foveate import FoveateError, load
from foveate.answering import answer_batch
from foveate.runtime import compress
from tiny_model import save_llava

HUGE = 10**18
PICTURE = {"type": "image", "image": Image.effect_noise((40, 32), 80).convert("RGB")}
ASKED = [[{"role": "user", "content": [PICTURE, {"type": "text", "text": "Which?"}]}]]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.mark.parametrize("name", ["random", "random-at", "zipvl"])
@pytest.mark.parametrize("seed", [-HUGE, HUGE, 2**63 - 1])
def test_any_seed_is_one(llava, name, seed):
    model, processor = llava
    with compress(model, f"{name}(seed={seed})" + (":50%" if name != "zipvl" else "")):
        first = answer_batch(model, processor, ASKED, 2)
        assert answer_batch(model, processor, ASKED, 2) == first


@pytest.mark.parametrize("plan", [f"ppe(members={HUGE}):5", "ppe(members=1025):5", "fastv:50%@" + "9" * 30])
def test_what_would_take_all_memory_is_refused(llava, plan):
    with pytest.raises(FoveateError), compress(llava[0], plan):
        answer_batch(*llava, ASKED, 2)


@pytest.mark.parametrize("plan", [f"divprune:{HUGE}", "divprune:0.0000001%", f"ppe(neighbours={HUGE}):5"])
def test_what_is_only_large_is_answered(llava, plan):
    model, processor = llava
    with compress(model, plan):
        assert len(answer_batch(model, processor, ASKED, 2)) == 1
