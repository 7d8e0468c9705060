#!/usr/bin/env bash
# Ask mm-serve with nothing but curl and sed: ask.sh QUESTION. The reasoning comes as it is generated.
# MINDMERGER_URL names another service than http://127.0.0.1:8017, MINDMERGER_API_KEY its key.
set -euo pipefail
url=${MINDMERGER_URL:-http://127.0.0.1:8017}
key=(-H "Authorization: Bearer ${MINDMERGER_API_KEY:-none}")

# The service has one model; a name that is not its own is refused.
model=$(curl -fsS "${key[@]}" "$url/v1/models" | sed -n 's/.*"data": *\[ *{ *"id": *"\([^"]*\)".*/\1/p')

# JSON wants back-slashes, quotes and control characters escaped.
question=$(printf '%s' "${1:?usage: ask.sh QUESTION}" | tr '\t\r\n' '   ' | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')
body='{"model": "'$model'", "stream": true, "messages": [{"role": "user", "content": "'$question'"}]}'

# Each event is a line `data: {…}`; of its JSON the text is kept, whose escapes printf knows.
curl -fsSN --json "$body" "${key[@]}" "$url/v1/chat/completions" |
  sed -un 's/^data: .*"content": *"\(\([^"\\]\|\\.\)*\)".*/\1/p' |
  while IFS= read -r text; do printf '%b' "${text//\\\"/\"}"; done
echo
