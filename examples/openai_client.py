"""OpenAI's package with a server of shardwise: answers, whole and as they come, JSON of a schema, vectors.

pip install openai; shardwise serve; python examples/openai_client.py
"""

import os

from openai import OpenAI
from pydantic import BaseModel, Field

client = OpenAI(
    base_url=os.environ.get("SHARDWISE_URL", "http://127.0.0.1:8000").rstrip("/") + "/v1",
    api_key=os.environ.get("SHARDWISE_API_KEY", "none"),  # a server without keys takes any
)
model = client.models.list().data[0].id
print(f"model: {model}")

answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "What is your name?"}], max_tokens=60
)
print(f"answer: {answer.choices[0].message.content}")

print("as it comes: ", end="")
with client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=60, stream=True
) as stream:
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
print()


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


parsed = client.chat.completions.parse(
    model=model, messages=[{"role": "user", "content": "Who are you?"}], response_format=Person, max_tokens=100
)
print(f"a person: {parsed.choices[0].message.parsed}")

response = client.responses.create(model=model, input="What is tensor parallelism?", max_output_tokens=60)
print(f"response: {response.output_text}")

vectors = client.embeddings.create(model=model, input=["a cat", "a dog"])
print(f"vectors: {len(vectors.data)} of {len(vectors.data[0].embedding)} numbers")
