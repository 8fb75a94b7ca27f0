"""Any text is a plan that reads the same when it is written again, or one sentence."""

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, parse_plan
from foveate.core.registry import all_methods
from foveate.serving.protocol import Compression, plan_of
from tests.fuzz.targets import is_sentence
from tests.fuzz.traps import bad_plans

SEEDS = [
    *(text.encode("utf-8", "surrogatepass") for _, text in bad_plans() if len(text) < 2**14),
    b"divprune:64",
    b"hiprune(alpha=0.1):25%",
    b"fastv:50%@2",
    b"pyramiddrop:50%@8,16,24",
    b"fastervlm:192 + fastv:50%@2",
    b"prumerge+ + divprune:5",
    b"pospad(selector=hiprune(alpha=0.1), marker='mean'):50%",
    b"todre(rule='max-sum', layer=-2):12.5%",
    b"relevance(weights='a, b.safetensors'):7",
    b"dymu(thresholds=[0.1, 0.2, -3e-4], virtual=false)",
]
WORDS = [
    *(name.encode() for name in all_methods()),
    *(b"(%s=" % field.encode() for cls in all_methods().values() for field in cls.__dataclass_fields__),
    b":64", b"50%", b"@2", b" + ", b", ", b"none", b"true", b"1e9", b"-1", b"[1, 2]", b"'a'", b"0x10", b"1_0", b"{}",
]  # fmt: skip


def check(data: bytes) -> None:
    """See the module."""
    try:
        text = data.decode("utf-8", "surrogatepass")  # halves of characters come in by JSON and by the shell
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    try:
        plan = parse_plan(text)
    except FoveateError as error:
        is_sentence(error)
    else:
        assert parse_plan(str(plan)) == plan
        assert all(step.count(100) is None or 1 <= step.count(100) <= 100 for step in plan.steps)
    try:
        asked = plan_of(Compression.model_construct(plan=text[:2000]), None)
    except FoveateError as error:
        is_sentence(error)
    else:
        assert asked is None or isinstance(asked, Plan)
