"""Measures plans in vLLM on the CPU: benchmarks/results/serving-vllm-cpu.json.

    .venv/vllm/bin/python benchmarks/vllm_serving.py            (after `make test-vllm`, which creates the environment)

A LLaVA-1.5 with random weights has 576 tokens per image of 336 pixels, so that the prefill takes a relevant share of
the time. It is served by vLLM with foveate's plug-in, and measured by `foveate bench serve`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from foveate.benchmark.serving import ServingSettings, run, table
from foveate.models.llava_uhd import byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def save(folder: Path, width: int, layers: int) -> None:
    """Save a random model whose language model has `layers` layers of `width`."""
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
    text = LlamaConfig(
        vocab_size=260,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=258,
        pad_token_id=256,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=259, image_seq_length=576)
    )
    with torch.no_grad():
        model.get_output_embeddings().weight[:32] = 0  # every generated token is visible as text
        model.get_output_embeddings().weight[127:] = 0
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    fields = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, tokenizer, **fields, image_token=tokenizer.image_token).save_pretrained(folder)
    (folder / "template.jinja").write_text(TEMPLATE)


def main() -> None:
    """Save the model, serve it, measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", default="divprune:64;fastervlm:64")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--note", default="")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/serving-vllm-cpu.json"))
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, given.width, given.layers)
        options = {
            "model": folder,
            "dtype": "float32",
            "max-model-len": 1024,
            "max-num-seqs": 32,
            "host": "127.0.0.1",
            "port": port,
            "served-model-name": "llava-random",
            "chat-template": folder / "template.jinja",
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command += ["--enforce-eager", "--trust-request-mm-kwargs", "--no-enable-prefix-caching"]
        environment = {**os.environ, "FOVEATE_PLAN": "full model", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with subprocess.Popen(command, env=environment, stdout=sys.stderr) as server:
            try:
                while not _ready(port):
                    if server.poll() is not None:
                        sys.exit("the server has ended")
                    time.sleep(1)
                settings = ServingSettings(
                    url=f"http://127.0.0.1:{port}/v1",
                    plans=tuple(plan.strip() for plan in given.plans.split(";")),
                    dialect="vllm",
                    clients=tuple(int(count) for count in given.clients.split(",")),
                    requests=given.requests,
                    turns=given.turns,
                )
                shown = shlex.join(["benchmarks/vllm_serving.py", *sys.argv[1:]])
                found = run(settings, given.output, command=shown, note=given.note)
            finally:
                server.terminate()
    header, rows = table(found)
    for line in (header, *rows):
        print(" | ".join(line))


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
