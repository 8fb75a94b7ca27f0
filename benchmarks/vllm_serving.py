"""Measures plans in vLLM on the CPU. `make test-vllm` creates the environment.

    .venv/vllm/bin/python benchmarks/vllm_serving.py           benchmarks/results/serving-vllm-cpu.json
    .venv/vllm/bin/python benchmarks/vllm_serving.py --clips   benchmarks/results/serving-vllm-clips-cpu.json

A LLaVA-1.5 with random weights has 576 tokens per image of 336 pixels, so that the prefill takes a relevant share of
the time. It is served by vLLM with foveate's plug-in, and measured by `foveate bench serve`.

With --clips, a Qwen2.5-VL with random weights has 1,024 tokens for a clip of 32 frames of 224 pixels. The same model in
a second server, without foveate, prunes the tokens of clips with vLLM's own implementation of EVS (`vllm_evs/`).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from foveate.benchmark.serving import ServingSettings, run, table
from foveate.core.full_model import FULL_MODEL
from foveate.models.llava_uhd import byte_tokenizer

#: Of images and clips: their part of a prompt.
IMAGE = "<image>"
CLIP = "<|vision_start|><|video_pad|><|vision_end|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}PLACEHOLDER{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
#: Share of a clip's tokens that plans keep.
KEPT = 0.25


def save_llava(folder: Path, width: int, layers: int) -> None:
    """Save a random LLaVA-1.5 whose language model has `layers` layers of `width`."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=256,
    )
    text = LlamaConfig(vocab_size=260, bos_token_id=None, **_text(width, layers))
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=259, image_seq_length=576)
    )
    _save(model, folder, IMAGE)
    tokenizer = byte_tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    fields = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, tokenizer, **fields, image_token=tokenizer.image_token).save_pretrained(folder)


def save_qwen(folder: Path, width: int, layers: int) -> None:
    """Save a random Qwen2.5-VL whose language model has `layers` layers of `width`."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    places = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    places |= {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(places.values())})
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in places.items()}
    for name, token in places.items():
        tokenizer.init_kwargs[f"{name}_token"] = token
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", ids[f"{name}_token_id"])
    vision = {
        "depth": 6,
        "hidden_size": 256,
        "num_heads": 4,
        "intermediate_size": 1024,
        "out_hidden_size": width,
        "fullatt_block_indexes": [2, 5],
    }
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    text = {**_text(width, layers), "vocab_size": len(tokenizer), "rope_parameters": rope, "tie_word_embeddings": False}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    _save(Qwen2_5_VLForConditionalGeneration(config), folder, CLIP)
    size = {"shortest_edge": 56 * 56, "longest_edge": 64 * 448 * 448}  # frames keep their size
    images, clips = Qwen2VLImageProcessor(), Qwen2VLVideoProcessor(size=size)
    Qwen2_5_VLProcessor(images, tokenizer, clips).save_pretrained(folder)
    images.save_pretrained(folder)  # vLLM looks for files of their own
    clips.save_pretrained(folder)


def _text(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 2048,
        "eos_token_id": 258,
        "pad_token_id": 256,
    }


def _save(model: Any, folder: Path, placeholder: str) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[:32] = 0  # every generated token is visible as text
        model.get_output_embeddings().weight[127:] = 0
    model.save_pretrained(folder)
    (folder / "template.jinja").write_text(TEMPLATE.replace("PLACEHOLDER", placeholder))


def main() -> None:
    """Save the model, serve it, measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", action="store_true", help="clips, against vLLM's own EVS")
    parser.add_argument("--plans", help="separated by semicolons")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--note", default="")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    kind, plans = (
        ("clips-cpu", f"evs:{KEPT:.0%};vidcom2:{KEPT:.0%};divprune:{KEPT:.0%}")
        if given.clips
        else ("cpu", "divprune:64;fastervlm:64")
    )
    output = given.output or Path(f"benchmarks/results/serving-vllm-{kind}.json")
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder, others = Path(name), {}
        if given.clips:
            save_qwen(folder, given.width, given.layers)
            media = {"max-model-len": 2048, "media-io-kwargs": json.dumps({"video": {"num_frames": -1}})}
            url = servers.enter_context(server(folder, "qwen2.5-vl-random", media))
            pruned = {**media, "video-pruning-rate": 1 - KEPT, "worker-extension-cls": "evs_on_cpu.Extension"}
            others["vLLM's EVS"] = servers.enter_context(server(folder, "qwen2.5-vl-random", pruned, plan=None))
        else:
            save_llava(folder, given.width, given.layers)
            url = servers.enter_context(server(folder, "llava-random", {"max-model-len": 1024}))
        settings = ServingSettings(
            url=url,
            plans=tuple(plan.strip() for plan in (given.plans or plans).split(";")),
            dialect="vllm",
            against=tuple(others.items()),
            clients=tuple(int(count) for count in given.clients.split(",")),
            requests=given.requests,
            turns=given.turns,
            side=224 if given.clips else 336,
            frames=32 if given.clips else 0,
        )
        shown = shlex.join(["benchmarks/vllm_serving.py", *sys.argv[1:]])
        found = run(settings, output, command=shown, note=given.note)
    header, rows = table(found)
    for line in (header, *rows):
        print(" | ".join(line))


@contextmanager
def server(folder: Path, name: str, options: Mapping[str, Any], plan: str | None = FULL_MODEL) -> Generator[str]:
    """Serve a model with vLLM while the context lasts.

    Args:
        folder: The model, with its chat template.
        name: Of the model at the server.
        options: More options of the server.
        plan: Of requests that name none; None: foveate's plug-in takes no part.

    Yields:
        Its URL, up to and including /v1.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model": folder,
        "dtype": "float32",
        "max-num-seqs": 32,
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": name,
        "chat-template": folder / "template.jinja",
        **options,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command += ["--enforce-eager", "--trust-request-mm-kwargs", "--no-enable-prefix-caching"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if plan is None:
        environment |= {"VLLM_PLUGINS": "", "PYTHONPATH": str(Path(__file__).parent / "vllm_evs")}
    else:
        environment["FOVEATE_PLAN"] = plan
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        try:
            while not _ready(port):
                if process.poll() is not None:
                    sys.exit("the server has ended")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
