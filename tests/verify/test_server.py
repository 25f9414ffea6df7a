"""Servers as the reference: real sockets, answers from transformers' logits in several manners, and what servers do wrong."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shardwise.errors import UserError
from shardwise.verify.client import Client, complaint
from shardwise.verify.run import Report
from shardwise.verify.server import Server, open_server
from tests.verify.openai_server import KEY, Logits, OpenAI

Verify = Callable[..., Report]

WORDS = {f"w{n}": n for n in range(131)}


@pytest.fixture(scope="session")
def logits(checkpoint: Callable[[str], Path]) -> Logits:
    """What transformers makes of ids, with the tiny llama."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), attn_implementation="eager").eval()

    def of(ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
            return found

    return of


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [5, 9, 77, 31, 4, 18]}\n{"prompt_token_ids": [3, 3, 120, 44]}')
    return path


def outcomes(report: Report) -> list[str]:
    return [row.outcome for row in report.rows]


@pytest.mark.parametrize("manner", ["vllm", "llama.cpp", "silent"])
def test_manners(manner: str, verify: Verify, logits: Logits, prompts: Path) -> None:
    """Scores of the prompts where they are echoed, and of what is generated; greedy tokens by id."""
    with OpenAI(logits, manner) as server:
        report = verify("llama", (1, 3), open_server(server.url, None, None), prompts=prompts)
    assert outcomes(report) == ["reference", "same up to rounding", "same up to rounding"], report.rows
    assert report.rows[0].name == f"{server.url} (tiny)"
    for row in report.rows[1:]:
        found = row.comparison
        assert found is not None and found.worst_logprob is not None
        assert (found.rows, found.worst_rel) == (0, None)
        assert found.tokens == found.equal == 2 * 6
        assert found.scored == (6 + 4 - 2 + 12 if manner == "vllm" else 12)
        assert 0 < found.worst_logprob < 1e-5
    asked = [body for path, _, body in server.seen if path == "/v1/completions"]
    assert all(body["prompt"] in ([5, 9, 77, 31, 4, 18], [3, 3, 120, 44]) and body["temperature"] == 0 for body in asked)


def test_text_alone(verify: Verify, logits: Logits, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A server that takes no ids and names none: only the prompt's log-likelihoods are compared, and that is said."""
    import shutil

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    path = tmp_path / "prompts.txt"
    path.write_text("w5 w9 w77 w31\n\nw3 w4 w120\n")
    with OpenAI(logits, "plain", lambda text: [WORDS[word] for word in text.split()]) as server:
        report = verify(folder, (2,), open_server(server.url, None, None), prompts=path)
    assert outcomes(report) == ["reference", "same up to rounding"]
    found = report.rows[1].comparison
    assert found is not None and (found.tokens, found.scored) == (0, 5)
    assert any("greedy tokens are not compared" in note for note in report.notes)


def test_another_model(verify: Verify, logits: Logits, prompts: Path) -> None:
    with OpenAI(lambda ids: logits(ids) * 1.01) as server:
        report = verify("llama", (1,), open_server(server.url, None, None), prompts=prompts)
    assert outcomes(report) == ["reference", "differs"]
    assert "a log-probability is out by up to" in report.rows[1].reason
    with OpenAI(lambda ids: logits(ids).roll(1, -1)) as server:
        report = verify("llama", (1,), open_server(server.url, None, None), prompts=prompts)
    found = report.rows[1].comparison
    assert found is not None and found.equal == 0 and found.first is not None and not found.first.tie


def test_another_tokenizer(verify: Verify, logits: Logits, prompts: Path) -> None:
    message = "does not serve this model, or tokenises otherwise: of line 1, it counts 7 tokens where"
    with OpenAI(logits, "begin") as server, pytest.raises(UserError, match=message):
        verify("llama", (1,), open_server(server.url, None, None), prompts=prompts)


# --- models and keys --------------------------------------------------------------------------------------------------


def test_models_of_a_server() -> None:
    with OpenAI(models=("large", "small")) as server:
        with pytest.raises(UserError, match="serves 2 models; choose one by --served-model: large, small"):
            open_server(server.url, None, None)
        with pytest.raises(UserError, match="does not serve 'medium', but large, small"):
            open_server(server.url, None, "medium")
        assert open_server(f"{server.url}/v1/", None, "small").name == f"{server.url} (small)"
    assert [path for path, _, _ in server.seen] == ["/v1/models"] * 3


def test_keys() -> None:
    with OpenAI(key=KEY) as server:
        for key in (None, "sk-bad"):
            with pytest.raises(UserError, match="answered 401: give its key by --api-key, or in SHARDWISE_API_KEY"):
                open_server(server.url, key, None)
        open_server(server.url, KEY, None)
    assert server.seen[-1][1] == f"Bearer {KEY}"
    for key in ("", "a\nb", "clé"):
        with pytest.raises(UserError, match="--api-key must be printable ASCII"):
            Client("http://127.0.0.1:1", key)


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://host:port", "http://host:99999", "http://h/v1?x=1", "http://[::1"]
)
def test_addresses(url: str) -> None:
    with pytest.raises(UserError, match=r"--against .* is no"):
        Client(url, None)


def test_a_password_in_the_address() -> None:
    with pytest.raises(UserError, match="holds a name or a password") as raised:
        Client("http://me:secret@host", None)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "too\\n\\u001b[31m long"}}', "too [31m long"),
        (b'{"error": "a word"}', "a word"),
        (b'{"detail": [{"loc": 1}]}', '[{"loc": 1}]'),
        (b"{}", ""),
        (b'{"message": "at the top"}', "at the top"),
        (b'"a string"', "a string"),
        (b"plain \xff text\n", "plain \ufffd text"),
        (b"<html><body>502 Bad Gateway", ""),
        (b"[" * 100_000, "[" * 1000),
        (b"", ""),
    ],
)
def test_what_a_refusal_says(body: bytes, said: str) -> None:
    assert complaint(body) == said


# --- servers that do wrong --------------------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=r"/v1/models cannot be reached: Connection refused; does the server run there\?"):
            open_server(url, None, None)


def row(*scores: str, tokens: str | None = None) -> bytes:
    """An answer with these log-probabilities, as JSON text."""
    named = tokens if tokens is not None else ", ".join(f'"token_id:{n}"' for n in range(len(scores)))
    return f'{{"choices": [{{"logprobs": {{"tokens": [{named}], "token_logprobs": [{", ".join(scores)}]}}}}]}}'.encode()


IDS = ", ".join(f'"token_id:{n}"' for n in (5, 9, 77, 31, 4, 18, 1))
NAN = ("null", "-1", "-1", "-1", "-1", "-1", "NaN")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "is not what OpenAI's API gives"),
        (200, b"", "is not what OpenAI's API gives"),
        (200, b"[" * 100_000, "is not what OpenAI's API gives"),
        (200, b'{"choices": "none"}', "is not what OpenAI's API gives: Expected `array`"),
        (200, b'{"choices": []}', "gave 0 answers to one prompt"),
        (200, b'{"choices": [{"text": "x"}]}', "cannot be compared with on line 1: it gave no log-probabilities"),
        (200, row("null", *["-1"] * 30), "answered with 31 tokens to 6 and at most 6 new ones"),
        (200, row("null", "-1", tokens='"a"'), "gave 1 tokens and 2 log-probabilities"),
        (200, row("null", *["-1"] * 6), "its token 0 is 0, and this model's is 5"),
        (200, row("null", "-1", "null", *["-1"] * 4, tokens=IDS), "left out log-probabilities in the midst of line 1"),
        (200, row(*NAN, tokens=IDS), "is not what OpenAI's API gives"),
        (200, row("null", *["-1"] * 5, "2.5", tokens=IDS), "gave 2.5 as a log-probability"),
        (200, row("null", *["-1"] * 5, "-1", tokens=IDS.replace(":1\"", ":500\"")), "token id 500, beyond this model's"),
        (400, b'{"error": {"message": "no\\u001b[31m such\\nthing"}}', r"on line 1: 400: no \[31m such thing"),
        (503, b'{"detail": "busy"}', "answered 503: busy"),
        (302, b"", "answered 302: nothing"),
    ],
)  # fmt: skip
def test_nonsense(status: int, body: bytes, message: str, verify: Verify, prompts: Path) -> None:
    """One clear line each; and nothing is asked of another address."""
    with OpenAI(raw=(status, body)) as server, pytest.raises(UserError, match=message):
        verify("llama", (1,), open_server(server.url, None, None), prompts=prompts)


def test_an_endless_answer(verify: Verify, prompts: Path) -> None:
    with OpenAI(raw=(200, b" " * 5000)) as server:
        client = Client(server.url, None, limit_bytes=4096)
        with pytest.raises(UserError, match="answered with more than 4096 bytes"):
            verify("llama", (1,), Server(client, "tiny", "it"), prompts=prompts)


def test_no_answer(verify: Verify, prompts: Path) -> None:
    with OpenAI(raw=(200, b"{}"), hold=threading.Event()) as server:
        client = Client(server.url, None, timeout_s=0.2)
        with pytest.raises(UserError, match=r"has not answered in 0\.2 s"):
            verify("llama", (1,), Server(client, "tiny", "it"), prompts=prompts)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"SSH-2.0-OpenSSH\r\n"])
def test_an_answer_that_breaks_off(sent: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="/v1/models broke off"):
            open_server(f"http://127.0.0.1:{listener.getsockname()[1]}", None, None)
        thread.join()


def test_an_answer_that_only_drips() -> None:
    """Each byte in time, the whole never: the time is that of the whole."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not over.wait(0.02):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=answer)
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", None, timeout_s=0.3)
        with pytest.raises(UserError, match=r"has not answered in 0\.3 s"):
            client.ask("models")
        over.set()
        thread.join()


def test_a_server_of_the_tests_is_quiet_where_a_client_has_left(capfd: pytest.CaptureFixture[str]) -> None:
    with OpenAI(raw=(200, b" " * 2**23)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            assert client.recv(1)
        deadline = time.monotonic() + 30
        while any("process_request" in thread.name for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert capfd.readouterr().err == ""
