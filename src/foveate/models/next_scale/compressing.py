"""Attach a cache method to a next-scale model, and detach it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from foveate.core.attention import attention_weights
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, Step, parse_plan
from foveate.methods.kv_cache.base import METHODS, CacheMethod, Profile, history
from foveate.methods.kv_cache.hack import head_variance
from foveate.methods.kv_cache.scale_cache import MapRecord, ScaleCache
from foveate.methods.kv_cache.scalekv import selectivity
from foveate.models.next_scale.modeling import NextScaleForImageGeneration

#: Earlier tokens that the attention selectivity index counts; the paper's number could not be verified.
TOP = 16


def calibrate(model: NextScaleForImageGeneration, samples: int = 10, seed: int = 0, top: int = TOP) -> Profile:
    """What both methods need to know of a model, from pictures that it draws with its full cache.

    Args:
        model: The model.
        samples: Pictures, of classes in turn (ScaleKV calibrates on 10).
        seed: Of the pictures.
        top: Earlier tokens that the attention selectivity index counts.

    Raises:
        FoveateError: `samples` is no number from 1 on.
    """
    if samples < 1:
        raise FoveateError(f"samples is {samples}; calibration needs 1 or more pictures.")
    config = model.config
    index = torch.zeros(config.num_hidden_layers, len(config.scales))
    variance = torch.zeros(config.num_hidden_layers, config.num_attention_heads)

    def observe(cache: ScaleCache, layer: int, queries: Tensor) -> None:
        (group,) = cache.layers[layer].groups
        weights = attention_weights(queries.float(), group.keys.float(), queries.shape[-1] ** -0.5)
        index[layer, cache.place] = selectivity(weights, queries.shape[2], top).cpu()
        if cache.place == len(config.scales) - 1:
            variance[layer] = head_variance(weights).mean(dim=0).cpu()

    labels = torch.arange(samples) % config.num_classes
    attached, model.cache_policy = model.cache_policy, None
    try:
        model.generate(labels, seed=seed, observers=(observe,))
    finally:
        model.cache_policy = attached
    return Profile(tuple(config.scales), variance, index, samples)


class CompressedCache:
    """A method on a model; leaving its context, or `restore()`, takes it off. Made by `compress_cache`."""

    def __init__(self, model: NextScaleForImageGeneration, step: Step, profile: Profile, seed: int) -> None:
        if model.cache_policy is not None:
            raise FoveateError("this model's cache is compressed already; restore it first.")
        if step.budget is None:
            raise FoveateError(f"{step.method.name} needs a budget, such as {step.method.name}:30%.")
        if profile.scales != tuple(model.config.scales) or profile.variance.shape != (
            model.config.num_hidden_layers,
            model.config.num_attention_heads,
        ):
            raise FoveateError("the profile is of a model with other maps, layers or heads; calibrate this one.")
        full = history(model.config.scales)
        if full == 0:
            raise FoveateError("a model with one map has no cache to compress.")
        if step.budget.tokens is not None and step.budget.tokens > full:
            raise FoveateError(f"{step} keeps more tokens than the {full} that there are before the last map.")
        self.model, self.step, self.profile = model, step, profile
        #: Mean tokens that a head may keep.
        self.average = step.budget.of(full)
        method = step.method
        assert isinstance(method, CacheMethod)
        model.cache_policy = method.policy(self.average, profile, seed)

    def restore(self) -> None:
        """Leave the model as it was; doing it twice changes nothing."""
        self.model.cache_policy = None

    def __enter__(self) -> CompressedCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.restore()

    def report(self, cache: ScaleCache | None) -> dict[str, Any]:
        """What a picture's cache held, map by map.

        Args:
            cache: Of `generate(...).cache` or `score`.

        Returns:
            `plan`, `average` tokens a head, `peak_bytes`, `kept_bytes`, and `maps`: for each its side, the bytes of a
            full cache, the bytes kept after it, the most that was stored while it was read, and the tokens of every
            head of every layer.

        Raises:
            FoveateError: there is no cache.
        """
        if cache is None:
            raise FoveateError("generate(use_cache=False) has no cache to report about.")
        return {
            "plan": str(self.step),
            "average": self.average,
            "peak_bytes": cache.peak_bytes,
            "kept_bytes": cache.kept_bytes,
            "maps": [MapRecord.document(record) for record in cache.records],
        }


def compress_cache(
    model: NextScaleForImageGeneration, plan: str | Plan, *, profile: Profile | None = None, seed: int = 0
) -> CompressedCache:
    """Keep a next-scale model's cache small while pictures are generated.

        with compress_cache(model, "hack:30%") as handle:
            sample = model.generate([0, 1])
            print(handle.report(sample.cache))

    Args:
        model: The model.
        plan: One method with its budget: hack, scalekv, random or recent. A budget is the mean number of tokens that
            a head keeps between two maps: `:30%` of those that a full cache holds before the last map, or `:40`.
        profile: Of `calibrate`; made with its defaults where there is none.
        seed: Of methods that draw lots.

    Returns:
        A handle and context manager.

    Raises:
        FoveateError: the plan is none of these, or the method cannot meet the budget.
    """
    steps = (parse_plan(plan, METHODS) if isinstance(plan, str) else Plan.of(plan)).steps
    if len(steps) != 1 or not isinstance(steps[0].method, CacheMethod):
        raise FoveateError(f"a cache is compressed by one of {', '.join(METHODS)}, such as hack:30%; not by {plan}.")
    return CompressedCache(model, steps[0], profile or calibrate(model), seed)
