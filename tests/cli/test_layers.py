"""Options from flags, variables and a file: which goes first, and what is said of those that cannot be understood."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from shardwise.cli import layers
from shardwise.cli.serve import markdown, parser
from shardwise.errors import UserError
from shardwise.server.options import OPTIONS, settings
from shardwise.server.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "options.md"


def read(argv: list[str], environ: dict[str, str] | None = None, file: Path | None = None) -> Any:
    return layers.read(parser(), [*argv, *(["--config", str(file)] if file else [])], environ or {})


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "shardwise.toml"
        path.write_text(text)
        return path

    return write


# dest, argv, variables, file, and what each of the three means
CASES = [
    ("port", ["--port", "1"], {"SHARDWISE_PORT": "2"}, "port = 3", (1, 2, 3), 8000),
    ("tp", ["-tp", "1"], {"SHARDWISE_TP": "2"}, "tensor-parallel-size = 3", (1, 2, 3), None),
    ("max_queue", ["--max-queue=1"], {"SHARDWISE_MAX_QUEUE": "2"}, "max_queue = 3", (1, 2, 3), None),
    ("max_num_seqs", ["--max-running-requests=1"], {"SHARDWISE_MAX_NUM_SEQS": "2"}, "max_running_requests = 3",
     (1, 2, 3), None),
    ("api_keys", ["--api-key", "a,b", "--api-key", "c"], {"SHARDWISE_API_KEY": "d,e"}, 'api_key = ["f", "g"]',
     (["a", "b", "c"], ["d", "e"], ["f", "g"]), []),
    ("served_model_name", ["--alias", "a"], {"SHARDWISE_SERVED_MODEL_NAME": "b,*"}, 'served-model-name = "c"',
     (["a"], ["b", "*"], ["c"]), []),
    ("drain_timeout_s", ["--drain-timeout", "5m"], {"SHARDWISE_DRAIN_TIMEOUT": "7"}, "drain_timeout = 0.5",
     (300.0, 7.0, 0.5), 30.0),
    ("max_body_bytes", ["--max-body-bytes", "1MiB"], {"SHARDWISE_MAX_BODY_BYTES": "2kb"}, "max_body_bytes = 3",
     (2**20, 2000, 3), 4 * 2**20),
    ("memory", ["--memory", "1GiB"], {"SHARDWISE_MEMORY": "2GB"}, 'memory = "3k"', (2**30, 2 * 10**9, 3072), None),
    ("shares", ["-ts", "1,2"], {"SHARDWISE_TENSOR_SPLIT": "3,4"}, "shares = [5, 6]", ((1, 2), (3, 4), (5, 6)), None),
    ("enable_prefix_caching", ["--no-enable-prefix-caching"], {"SHARDWISE_ENABLE_PREFIX_CACHING": "off"},
     "enable_prefix_caching = false", (False, False, False), True),
    ("trust_request_chat_template", ["--trust-request-chat-template"], {"SHARDWISE_TRUST_REQUEST_CHAT_TEMPLATE": "no"},
     "trust-request-chat-template = true", (True, False, True), False),
    ("model", ["m1"], {"SHARDWISE_MODEL": "m2"}, 'model = "m3"', ("m1", "m2", "m3"), None),
    ("max_model_len", ["-c", "100"], {"SHARDWISE_MAX_MODEL_LEN": "200"}, 'max_model_len = "auto"', (100, 200, None), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "argv", "environ", "text", "values", "default"), CASES, ids=[case[0] for case in CASES])
def test_flags_go_before_variables_and_these_before_the_file(
    name: str, argv: list[str], environ: dict[str, str], text: str, values: tuple[Any, ...], default: Any, toml: Any
) -> None:
    for flagged, varied, filed in product((True, False), repeat=3):
        found = getattr(read(argv if flagged else [], environ if varied else {}, toml(text) if filed else None), name)
        wanted = values[0] if flagged else values[1] if varied else values[2] if filed else default
        assert found == wanted, (flagged, varied, filed)


@pytest.mark.parametrize(
    ("argv", "environ", "text", "words"),
    [
        (["--max-quue", "1"], {}, "", ("--max-quue", "nearest: --max-queue")),
        ([], {}, "max_quue = 1", ("shardwise.toml", "'max_quue'", "nearest: max_queue")),
        ([], {}, 'max_queue = "many"', ("shardwise.toml: max_queue", "'many'", "whole number")),
        ([], {}, "max_queue = 0", ("max_queue", "0 is out of range")),
        ([], {}, "port = true", ("port", "bool")),
        ([], {}, "[server]\nport = 1", ("[server] is a table", "top of the file")),
        ([], {}, "port = ", ("is not TOML",)),
        ([], {}, "tp = 1\ntensor_parallel_size = 2", ("one option",)),
        ([], {}, 'config = "other.toml"', ("'config'",)),
        ([], {"SHARDWISE_TP": "1", "SHARDWISE_TP_SIZE": "2"}, "", ("SHARDWISE_TP ", "SHARDWISE_TP_SIZE", "one option")),
        ([], {"SHARDWISE_PORT": "tcp://10.0.0.1:8000"}, "", ("SHARDWISE_PORT", "enableServiceLinks")),
        ([], {"SHARDWISE_PORT": "70000"}, "", ("SHARDWISE_PORT", "0 to 65535")),
        ([], {"SHARDWISE_TRUST_REQUEST_CHAT_TEMPLATE": "perhaps"}, "", ("'perhaps'", "neither on nor off")),
        ([], {"SHARDWISE_MEMORY": "much"}, "", ("SHARDWISE_MEMORY", "not a size")),
        ([], {"SHARDWISE_CONFIG": "nowhere.toml"}, "", ("nowhere.toml", "No such file")),
        (["--allow-origin", "example.org"], {}, "", ("example.org", "https://")),
        (["--drain-timeout", "-1"], {}, "", ("not a time",)),
        (["--api-key", ""], {}, "", ("--api-key", "empty")),
        ([], {}, "api_key = ','", ("api_key", "empty")),
        (["--allowed-hosts", "http://a"], {}, "", ("--allowed-hosts", "'http://a'", "without http://")),
    ],
)
def test_what_cannot_be_understood_is_said_with_its_place(
    argv: list[str], environ: dict[str, str], text: str, words: tuple[str, ...], toml: Any
) -> None:
    with pytest.raises(UserError) as refused:
        read(argv, environ, toml(text) if text else None)
    for word in words:
        assert word in str(refused.value)


def test_an_empty_variable_is_none_and_a_key_is_not_repeated_in_a_message() -> None:
    assert read([], {"SHARDWISE_PORT": " ", "SHARDWISE_API_KEY": ""}).port == 8000
    with pytest.raises(UserError) as refused:
        read(["--api-key", "sec ret"])
    assert "ret" not in str(refused.value)


def test_a_variable_that_is_spelt_wrong_is_named_and_those_of_others_are_not() -> None:
    others = {"SHARDWISE_DEBUG": "1", "SHARDWISE_SERVICE_HOST": "x", "SHARDWISE_PORT_8000_TCP": "x", "PROT": "1"}
    assert list(layers.misspelt(parser(), {**others, "SHARDWISE_PORT": "1", "SHARDWISE_MAX_QUEUE": "1"})) == []
    [line] = layers.misspelt(parser(), {**others, "SHARDWISE_PROT": "1"})
    assert line == "SHARDWISE_PROT is no option and changes nothing; did you mean SHARDWISE_PORT?"


def made(argv: list[str]) -> Settings:
    found = read(argv)
    return settings({option.name: getattr(found, option.name) for option in OPTIONS})


def test_settings_are_what_the_options_say(tmp_path: Path) -> None:
    assert made([]) == Settings()
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\nsecond\n")
    assert not made(["--no-response-store"]).stores and not made(["--api-workers", "2"]).stores
    found = made(["--api-key", "third,first", "--api-key-file", str(file), "--allow-origin", "http://a:1", "--max-depth", "9"])
    assert found.api_keys == ("third", "first", "second")
    assert (found.allow_origins, found.max_depth) == (("http://a:1",), 9)
    file.write_text("two words\n")
    with pytest.raises(UserError, match="line 1"):
        made(["--api-key-file", str(file)])
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        made(["--api-key-file", str(file)])


def test_the_example_is_understood_with_all_that_is_commented_out(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "examples" / "server.toml").read_text()
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    file = tmp_path / "server.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE).replace("/etc/shardwise/keys", str(keys)))
    found = read([], file=file)
    assert (found.tp, found.model, found.max_model_len) == (2, "/models/llama-3.1-8b", None)
    made_ = settings({option.name: getattr(found, option.name) for option in OPTIONS})
    assert (made_.api_keys, made_.request_timeout_s, made_.served_model_name) == (("k",), 300.0, ("shardling", "*"))


def test_every_limit_is_an_option_and_the_docs_have_them_all() -> None:
    names = {option.name for option in OPTIONS}
    assert {name for name, _, _ in Settings().limits()} <= names
    assert DOCS.read_text(encoding="utf-8") == markdown(), "docs/options.md says how to make it anew"
