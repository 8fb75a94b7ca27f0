"""The rate of warnings about images unlike those that the embedded model was trained on."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

from foveate.loading import load_skeleton
from foveate.statistics import wilson_interval

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/domain.py"))
RESULT = ROOT / "benchmarks/results/domain-embedded.json"


def test_small_text_is_warned_about_and_large_text_is_not() -> None:
    _, processor = load_skeleton()
    rates = {cap: SCRIPT["Rate"].of("capitals", str(cap), processor, SCRIPT["lines"](cap, 4)) for cap in (7, 18)}
    assert rates[7].warned >= 3 and rates[18].warned <= 1
    assert (rates[7].low, rates[7].high) == tuple(round(x, 4) for x in wilson_interval(rates[7].warned, 4))
    images = [image.size for image in SCRIPT["pages"]("sign", 2, 300, 12)]
    assert all(max(size) <= 300 for size in images)
    assert [image.size for image in SCRIPT["resized"](SCRIPT["pages"]("sign", 2, 300, 12), 2)] == [
        (2 * width, 2 * height) for width, height in images
    ]


def test_the_rates_are_stated_for_the_limits_of_the_model() -> None:
    """Most pages of the domain have no warning, and what lies outside of it has one."""
    result = json.loads(RESULT.read_text())
    limits: SimpleNamespace = load_skeleton()[1].image_processor
    for name in ("trained_size", "trained_text_height"):
        assert result["settings"][name] == getattr(limits, name)
    rates = {(rate["kind"], rate["what"]): rate["warned"] / rate["count"] for rate in result["rates"]}
    inside = [rate for (kind, _), rate in rates.items() if kind == "inside"]
    assert len(inside) == len(SCRIPT["DOMAIN"]) and sum(inside) / len(inside) < 0.1
    assert all(rate == 1 for (kind, _), rate in rates.items() if kind == "larger")
    assert all(rate > 0.9 for (kind, cap), rate in rates.items() if kind == "capitals" and float(cap) <= 9)
    assert all(rate < 0.1 for (kind, cap), rate in rates.items() if kind == "capitals" and float(cap) >= 13)
