#!/bin/sh
# What a server can do, with curl alone. The server: shardwise serve. Another address: URL=http://host:8000 sh curl.sh
set -eu
URL="${URL:-http://127.0.0.1:8000}"

# Which models are served
curl -fsS "$URL"/v1/models

# An answer
curl -fsS "$URL"/v1/chat/completions -H 'Content-Type: application/json' \
  -d '{"messages": [{"role": "user", "content": "What is your name?"}], "max_tokens": 60}'

# The same as it comes
curl -fsSN "$URL"/v1/chat/completions -H 'Content-Type: application/json' \
  -d '{"messages": [{"role": "user", "content": "What is your name?"}], "max_tokens": 60, "stream": true}'

# Three ways to go on with a text, each with its own draws
curl -fsS "$URL"/v1/completions -H 'Content-Type: application/json' \
  -d '{"prompt": "Once upon a time", "n": 3, "temperature": 1, "seed": 7, "max_tokens": 20}'

# How likely each token of a text is
curl -fsS "$URL"/v1/completions -H 'Content-Type: application/json' \
  -d '{"prompt": "Once upon a time", "max_tokens": 0, "echo": true, "logprobs": 1}'

# JSON, as a schema has it
curl -fsS "$URL"/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "messages": [{"role": "user", "content": "Who are you?"}],
    "max_tokens": 100,
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": {
      "type": "object",
      "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
      "required": ["name", "age"],
      "additionalProperties": false
    }}}
  }'

# As Anthropic's clients ask
curl -fsS "$URL"/v1/messages -H 'Content-Type: application/json' \
  -d '{"messages": [{"role": "user", "content": "What is your name?"}], "max_tokens": 60}'

# A text as a vector
curl -fsS "$URL"/v1/embeddings -H 'Content-Type: application/json' -d '{"input": "a small model"}'
