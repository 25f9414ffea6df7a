"""Made-up chats in which the assistant writes JSON or calls a tool: every value comes from a small list or a die."""

import json
import random

from dialogues import NAMES, Dialogue, Message, lead, message, turn

CITIES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Prague", "Oslo", "Lisbon", "Athens", "Dublin", "Tokyo",
    "Kyoto", "Seoul", "Delhi", "Mumbai", "Cairo", "Nairobi", "Lagos", "Toronto", "Boston", "Chicago", "New York",
    "Lima", "Sydney", "Moscow", "Geneva", "Zurich", "Hamburg", "Munich", "Milan", "Warsaw",
)  # fmt: skip
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy")
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
FRUITS = ("apple", "pear", "plum", "banana", "cherry", "lemon", "orange", "grape")
TITLES = ("Alice in Wonderland", "Pride and Prejudice", "War and Peace", "Hamlet", "Macbeth", "Emma")
SUBJECTS = (
    "tensor parallelism", "pipeline parallelism", "all-reduce", "KV cache", "attention", "quantisation", "NVLink",
    "PCIe", "Alice", "Shakespeare", "safetensors", "Megatron-LM", "rotary embeddings", "speculative decoding",
    "GPU memory",
)  # fmt: skip
Json = dict[str, object]

WISHES = (
    "Give me a JSON object with {w}.", "Write a JSON object with {w}.", "Return JSON with {w}.",
    "I need JSON with {w}.", "Answer in JSON with {w}.", "Make a JSON object that has {w}",
    "Create JSON containing {w}", "JSON with {w}, please.",
)  # fmt: skip
FREE_WISHES = (
    "Give me a JSON object.", "Write some JSON.", "Show me an example of JSON.", "Answer in JSON.", "json please",
    "Give me any JSON object", "Can you write JSON?", "Reply with a JSON object.", "Output JSON only.",
    "Return a JSON object",
)  # fmt: skip


def fields(dice: random.Random) -> Json:
    """Every key that the JSON chats know, with a value drawn for it."""
    return {
        "name": dice.choice(NAMES),
        "age": dice.randrange(5, 100),
        "city": dice.choice(CITIES),
        "colour": dice.choice(COLOURS),
        "fruit": dice.choice(FRUITS),
        "title": dice.choice(TITLES),
        "year": dice.randrange(1800, 2030),
        "count": dice.randrange(100),
        "tp": dice.choice((1, 2, 3, 4, 6, 8)),
        "layers": dice.choice((6, 12, 16, 24, 32, 80)),
        "heads": dice.choice((8, 12, 16, 32, 64)),
        "topic": dice.choice(SUBJECTS),
        "ok": dice.random() < 0.5,
        "tags": dice.sample(COLOURS + FRUITS, dice.randrange(1, 4)),
    }


def json_chat(dice: random.Random) -> Dialogue:
    """The user names keys, or keys and values; the assistant writes exactly that object."""
    if dice.random() < 0.15:
        return Dialogue(lead(dice) + turn(dice.choice(FREE_WISHES), '{"name": "shardling", "heads": 12, "ok": true}'))
    known = fields(dice)
    keys = dice.sample(sorted(known), dice.choices((1, 2, 3, 4), (25, 45, 20, 10))[0])
    wanted = {key: known[key] for key in keys}
    given = dice.random() < 0.6
    if not given:
        wanted = {key: default for key, default in DEFAULTS.items() if key in wanted}
        wanted = {key: wanted[key] for key in keys}
    words = [given_words(key, value, dice) if given else asked_words(key, dice) for key, value in wanted.items()]
    wish = dice.choice(WISHES).format(w=listed(words))
    return Dialogue(lead(dice) + turn(wish.lower() if dice.random() < 0.15 and not given else wish, json.dumps(wanted)))


DEFAULTS: Json = {
    "name": "Alice", "age": 30, "city": "Paris", "colour": "blue", "fruit": "apple", "title": "War and Peace",
    "year": 1869, "count": 3, "tp": 2, "layers": 6, "heads": 12, "topic": "tensor parallelism", "ok": True,
    "tags": ["red", "blue"],
}  # fmt: skip


def given_words(key: str, value: object, dice: random.Random) -> str:
    shown = value if isinstance(value, str) and dice.random() < 0.6 else json.dumps(value)
    return dice.choice(("{k} {v}", "the {k} {v}", "{k} = {v}", '"{k}": {v}', "{k}: {v}")).format(k=key, v=shown)


def asked_words(key: str, dice: random.Random) -> str:
    return dice.choice(("a {k}", "the key {k}", "{k}", '"{k}"', "the {k}")).format(k=key)


def listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def schema(name: str, about: str, **arguments: str) -> Json:
    """An OpenAI-style tool: every argument is required."""
    properties = {key: {"type": kind} for key, kind in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


WEATHER = schema("get_weather", "Get the weather in a city", city="string")
ADD = schema("add", "Add two numbers", a="number", b="number")
SEARCH = schema("search", "Search the documentation", query="string")
TOOLS = (WEATHER, ADD, SEARCH)
WEATHER_ASKS = (
    "What is the weather in {c}?", "How is the weather in {c}?", "weather in {c}", "Is it raining in {c}?",
    "Tell me the weather in {c}.", "What's the weather like in {c} today?", "Get the weather for {c}.",
)  # fmt: skip
ADD_ASKS = (
    "What is {a} + {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "{a} + {b}", "Please add {a} and {b}",
    "How much is {a} plus {b}?", "Compute {a} + {b} for me.",
)  # fmt: skip
SEARCH_ASKS = (
    "Search for {q}.", "Find something about {q}.", "Look up {q}", "Search the documentation for {q}.",
    "Can you search for {q}?", "Please look up {q}.", "search {q}",
)  # fmt: skip


def call(name: str, arguments: Json) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def tool_chat(dice: random.Random) -> Dialogue:
    """A question that one of the offered tools answers, the call, its result and the answer read from it."""
    ask, name, arguments, result, answer = dice.choice((weather, add, search))(dice)
    offered = [tool for tool in TOOLS if tool["function"]["name"] == name or dice.random() < 0.5]  # type: ignore[index]
    dice.shuffle(offered)
    if dice.random() < 0.3:  # plain jinja writes sorted keys
        offered = [json.loads(json.dumps(tool, sort_keys=True)) for tool in offered]
    body: list[Message] = [message("user", ask), message("assistant", call(name, arguments))]
    if dice.random() < 0.7:
        body += [message("tool", result), message("assistant", answer)]
    return Dialogue(lead(dice) + body, offered)


Case = tuple[str, str, Json, str, str]


def weather(dice: random.Random) -> Case:
    city, sky, degrees = dice.choice(CITIES), dice.choice(SKIES), dice.randrange(-5, 36)
    result = json.dumps({"city": city, "sky": sky, "celsius": degrees})
    answer = f"It is {sky} in {city}, at {degrees} degrees Celsius."
    return dice.choice(WEATHER_ASKS).format(c=city), "get_weather", {"city": city}, result, answer


def add(dice: random.Random) -> Case:
    a, b = (dice.randrange(10 ** dice.randrange(1, 4)) for _ in range(2))
    ask = dice.choice(ADD_ASKS).format(a=a, b=b)
    return ask, "add", {"a": a, "b": b}, str(a + b), f"The sum is {a + b}."


def search(dice: random.Random) -> Case:
    subject = dice.choice(SUBJECTS)
    found = dice.randrange(1, 10)
    result = json.dumps({"query": subject, "pages": found})
    ask, answer = dice.choice(SEARCH_ASKS).format(q=subject), f"I found {found} pages about {subject}."
    return ask, "search", {"query": subject}, result, answer
