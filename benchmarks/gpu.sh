#!/bin/sh
# All benchmarks for a machine with one NVIDIA GPU: encoders, and plans on models with a 7B language model. FlashAttention is
# used if it is installed. If interrupted, run it again to resume.
#
#     make bench-gpu          or, in an environment with foveate:   sh benchmarks/gpu.sh [FOLDER]
set -eu
results="${1:-benchmarks/results}"

if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "no CUDA device is available; on a CPU, use make bench." >&2
    exit 2
fi
if python -c "import flash_attn" 2>/dev/null; then attention=flash_attention_2; else attention=sdpa; fi

foveate bench encoders --device cuda --attention "$attention" --resume \
    -o "$results/encoders-cuda-$attention.json"
# A plan that does not fit into memory at batch 8 is listed with that reason.
foveate bench speed --device cuda --attention "$attention" --text qwen2-7b --batch 1,8 --repeats 10 --resume \
    -o "$results/speed-cuda-$attention.json" --plot "$results/speed-cuda-$attention.png"
# Clips of 224 x 224 px, with the methods that compare frames.
foveate bench speed --device cuda --attention "$attention" --text qwen2-7b --frames 16,64,256 --budgets 10%,25% \
    --repeats 10 --resume -o "$results/speed-cuda-clips-$attention.json"
