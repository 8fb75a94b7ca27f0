#!/bin/sh
# No password or key in what git has or would add: detect-secrets, held against what somebody looked at and found harmless
# (.secrets.baseline; `detect-secrets audit .secrets.baseline` goes through it). Generated pages, results, weights and
# vocabularies are left out: long random-looking words are what they are made of. Keys of tests are "sesame" and "key".
set -eu
cd "$(dirname "$0")/.."
hook=${1:-.venv/bin}/detect-secrets-hook
git ls-files -z --cached --others --exclude-standard -- . \
  ':!docs/results' ':!docs/methods' ':!docs/reference' ':!docs/figures' ':!benchmarks/results' ':!benchmarks/models' \
  ':!src/foveate/embedded' ':!*.png' ':!*.webp' ':!*.safetensors' ':!*.svg' ':!.secrets.baseline' |
  xargs -0 "$hook" --baseline .secrets.baseline --exclude-secrets '^(sesame|key)$'
