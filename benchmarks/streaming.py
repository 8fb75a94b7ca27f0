"""Memory of long streams, and operations and time that STC saves.

    python benchmarks/streaming.py memory [--frames 10000] [--output benchmarks/results/stream-memory-cpu.json]
    python benchmarks/streaming.py stc [--clip 4] [--output benchmarks/results/stream-stc-cpu.json]

`memory` feeds frames to `foveate.stream` with a small Qwen2.5-VL of random weights, under every policy, and samples the
resident memory of the process. It fails if memory grows by more than a tenth over the last nine tenths of a stream.

`stc` builds LLaVA-OneVision with the vision tower of released models (SigLIP-So400m) and random weights. It counts the
operations of `get_video_features` on tensors without data and measures its processor time, with and without
`STCCacher`; and the operations of a prefill by Qwen2-7B, in closed form, with and without `stc:60`, as in the paper,
and the processor time of the selection. It runs on one thread, so that other processes change little.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

import foveate
from foveate.benchmark.profiling import clock, hardware, head, spread
from foveate.benchmark.results import write_json
from foveate.core.tokens import VisualTokens
from foveate.cost import flops
from foveate.cost.counted import count, empty, without_data
from foveate.families.family import frame_crops
from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.methods.video.stc import STC
from foveate.streaming import CachePolicy, SinkWindow, SlidingWindow, TokenThinning, UniformThinning

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
POLICIES: dict[str, CachePolicy] = {
    "SlidingWindow(32)": SlidingWindow(32),
    "SinkWindow(4, 28)": SinkWindow(4, 28),
    "UniformThinning(32)": UniformThinning(32),
    "TokenThinning('uniform:2', 8, SlidingWindow(64))": TokenThinning("uniform:2", 8, SlidingWindow(64)),
}


def memory(frames: int, names: list[str]) -> dict[str, Any]:
    """Feed `frames` frames under every policy, and sample memory."""
    model, processor = small_qwen()
    size = (56, 84)
    generator = np.random.default_rng(0)
    process = psutil.Process()
    rows = []
    for name in names:
        with foveate.stream(model, processor, policy=POLICIES[name]) as session:
            samples, begin = [], clock(CPU)
            for number in range(1, frames + 1):
                session.feed(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
                if number % max(frames // 20, 1) == 0:
                    gc.collect()
                    samples.append(
                        {
                            "frames": number,
                            "resident_bytes": process.memory_info().rss,
                            "kv_bytes": session.kv_bytes,
                            "cached_tokens": session.cached_tokens,
                            "seconds": round(clock(CPU) - begin, 3),
                        }
                    )
            answer = session.ask("What is in the picture?", max_new_tokens=8)
        early, late = (statistics.median(s["resident_bytes"] for s in part) for part in (samples[2:7], samples[-5:]))
        rows.append({"policy": name, "growth": round(late / early - 1, 4), "answer": answer, "samples": samples})
        print(f"{name}: {samples[-1]}, growth {late / early - 1:+.2%}", flush=True)
    settings = {
        "model": "Qwen2.5-VL, 1 block of width 32, 2 layers of width 64, random weights, float32",
        "frames": frames,
        "frame_pixels": size,
    }
    note = "One frame a second; steps of two frames; resident memory of the whole process."
    return {**_head("stream-memory", settings, note), "rows": rows}


def small_qwen() -> tuple[Any, Any]:
    """A Qwen2.5-VL with random weights, and the processor of this repository's with a place for clips in prompts."""
    folder = ROOT / "benchmarks/models/measure-qwen2.5-vl"
    config: Any = AutoConfig.from_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": rope}
    layers = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    config.text_config.update({"hidden_size": 64, "intermediate_size": 64, **heads, **layers})
    sizes = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "fullatt_block_indexes": [0]}
    config.vision_config.update({**sizes, "out_hidden_size": 64})
    processor: Any = AutoProcessor.from_pretrained(folder)
    token = processor.tokenizer.convert_ids_to_tokens(config.video_token_id)
    part = f"{{% if part['type'] == 'video' %}}{token}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    processor.chat_template = f"{{% for part in messages[0]['content'] %}}{part}{{% endfor %}}"
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).float().eval(), processor


def stc(clip: int, dynamic: float, interval: int, repeats: int) -> dict[str, Any]:
    """Count and time the vision tower of LLaVA-OneVision on a clip, and the language model's prefill."""
    method = STCCacher(dynamic, interval)
    counted: Any = without_data(onevision)
    pixels = empty(1, clip, 3, 384, 384)
    full = count(lambda: counted.model.get_video_features(pixels))
    with foveate.reuse_features(counted, method):
        reused = count(lambda: counted.model.get_video_features(pixels))
    model = onevision().to(torch.bfloat16).eval()
    frames = torch.rand(1, clip, 3, 384, 384, dtype=torch.bfloat16)
    seconds: dict[str, list[float]] = {"full": [], "reused": []}
    with torch.inference_mode():
        for _ in range(repeats + 1):  # in turns; the first is not counted
            seconds["full"].append(_time(model, frames))
            with foveate.reuse_features(model, method):
                seconds["reused"].append(_time(model, frames))
    times = {name: spread(values[1:]) for name, values in seconds.items()}
    encoder = {
        "flops_full": full,
        "flops_reused": reused,
        "flops_saved": round(1 - reused / full, 4),
        "cpu_seconds_full": times["full"],
        "cpu_seconds_reused": times["reused"],
        "time_saved": round(1 - times["reused"]["median"] / times["full"]["median"], 4),
    }
    settings = {
        "tower": "SigLIP-So400m, 384 pixels, 27 blocks, random weights, bfloat16",
        "clip": clip,
        "dynamic": dynamic,
        "interval": interval,
        "repeats": repeats,
    }
    note = "get_video_features of LLaVA-OneVision: tower, projector and pooling; random frames."
    return {**_head("stream-stc", settings, note), "encoder": encoder, "prefill": _prefill(32)}


def _prefill(frames: int) -> dict[str, Any]:
    """Prefill of a clip by Qwen2-7B in closed form, and the time of the selection."""
    config = Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064,
    )  # fmt: skip
    tokens = VisualTokens(torch.randn(frames * 196, config.hidden_size), frame_crops(frames, 14, 14))
    full, short = (flops.prefill(frames * each, config) for each in (196, 60))
    rows = []
    for form in ("paper", "code"):
        method = STC(form=form)
        method(tokens, frames * 60)
        seconds = []
        for _ in range(5):
            begin = time.process_time()
            method(tokens, frames * 60)
            seconds.append(time.process_time() - begin)
        rows.append({"form": form, "cpu_seconds": spread(seconds)})
    return {
        "frames": frames,
        "tokens_per_frame": [196, 60],
        "flops_full": full,
        "flops_pruned": short,
        "flops_saved": round(1 - short / full, 4),
        "selection": rows,
    }


def onevision() -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision with the tower of released models and a language model of one narrow layer."""
    tower = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    tokens: dict[str, Any] = {"image_token_id": 60, "video_token_id": 61}
    config = LlavaOnevisionConfig(vision_config=tower, text_config=text, **tokens)
    return LlavaOnevisionForConditionalGeneration(config)


def _time(model: Any, frames: torch.Tensor) -> float:
    begin = time.process_time()
    model.model.get_video_features(frames)
    return time.process_time() - begin


def _head(kind: str, settings: dict[str, Any], note: str) -> dict[str, Any]:
    return head(kind, f"python benchmarks/streaming.py {' '.join(sys.argv[1:])}", hardware(CPU), settings, note)


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    results = ROOT / "benchmarks/results"
    one = commands.add_parser("memory")
    one.add_argument("--frames", type=int, default=10_000)
    one.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    one.add_argument("--output", type=Path, default=results / "stream-memory-cpu.json")
    two = commands.add_parser("stc")
    two.add_argument("--clip", type=int, default=4)
    two.add_argument("--dynamic", type=float, default=0.25)
    two.add_argument("--interval", type=int, default=2)
    two.add_argument("--repeats", type=int, default=3)
    two.add_argument("--output", type=Path, default=results / "stream-stc-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "stc":
        document = stc(options.clip, options.dynamic, options.interval, options.repeats)
        write_json(options.output, document)
        print(document["encoder"], document["prefill"])
        return
    document = memory(options.frames, options.policies)
    write_json(options.output, document)
    grown = [row["policy"] for row in document["rows"] if row["growth"] > 0.1]
    if grown:
        sys.exit(f"memory grew under {', '.join(grown)}")


if __name__ == "__main__":
    main()
