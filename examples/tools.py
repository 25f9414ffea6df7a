"""A function that the model calls: it is offered, called as the model wants it, and its result goes back to the model.

The bundled model calls the function, but is too small to tell cities apart; larger ones do.

pip install openai; shardwise serve; python examples/tools.py
"""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("SHARDWISE_URL", "http://127.0.0.1:8000").rstrip("/") + "/v1",
    api_key=os.environ.get("SHARDWISE_API_KEY", "none"),
)
model = client.models.list().data[0].id


def get_weather(city: str) -> str:
    """What a program would look up."""
    return json.dumps({"city": city, "weather": "sunny", "celsius": 21})


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}

messages = [{"role": "user", "content": "What is the weather in Rome?"}]
# "auto" leaves it to the model whether it calls; "required" is kept by a grammar, with any model.
asked = client.chat.completions.create(model=model, messages=messages, tools=[TOOL], tool_choice="required", max_tokens=100)
message = asked.choices[0].message
messages.append(message.model_dump(exclude_none=True))
for call in message.tool_calls or []:
    print(f"the model calls {call.function.name}({call.function.arguments})")
    result = get_weather(**json.loads(call.function.arguments))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

answered = client.chat.completions.create(model=model, messages=messages, tools=[TOOL], max_tokens=100)
print(f"and says: {answered.choices[0].message.content}")
