#!/bin/sh
# Searches for passwords and keys in all files that git tracks or would add, with detect-secrets. Reviewed false positives
# are in .secrets.baseline (`detect-secrets audit .secrets.baseline` lists them). Generated pages, results, weights and
# vocabularies are excluded, because they contain long random-looking words. In tests only keys of known formats count,
# because servers are tested there with invented keys.
set -eu
cd "$(dirname "$0")/.."

scan() {
  files=$1
  shift
  git ls-files -z --cached --others --exclude-standard -- "$files" ':!.secrets.baseline' \
    ':!docs/results' ':!docs/methods' ':!docs/reference' ':!docs/figures' ':!benchmarks/results' ':!benchmarks/models' \
    ':!src/foveate/embedded' ':!*.png' ':!*.webp' ':!*.safetensors' ':!*.svg' |
    xargs -0 .venv/bin/detect-secrets-hook --baseline .secrets.baseline "$@"
}

scan ':!tests'
scan tests --disable-plugin KeywordDetector
