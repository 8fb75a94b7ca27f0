#!/bin/sh
# No password or key in what git has or would add: detect-secrets, held against what somebody looked at and found harmless
# (.secrets.baseline; `detect-secrets audit .secrets.baseline` goes through it). Generated pages, results, weights and
# vocabularies are left out: long random-looking words are what they are made of. In tests only keys of known forms count:
# servers are tested there with keys that somebody made up.
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
