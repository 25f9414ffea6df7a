"""`shardwise chat`: from a pipe one answer a message, on a terminal a dialogue that Ctrl-C and Ctrl-D do not surprise."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from shardwise.engine.hub import bundled
from tests.cli.command import COMMAND, Done, environment, marked, running, shardwise

GREEDY = ("--temp", "0", "--dtype", "float32")


def chat(*args: str | Path, said: list[str], code: int = 0) -> Done:
    done = shardwise("chat", *GREEDY, *args, given="".join(f"{line}\n" for line in said).encode())
    assert done.code == code, done.err
    assert done.left == ()
    return done


def test_a_message_a_line_from_a_pipe():
    done = chat("-n", "20", "-tp", "2", said=["What is your name?", "", "Tell me more."])
    asked = shardwise("generate", *GREEDY, "--chat", "-p", "What is your name?", "-n", "20", "--json")
    first = json.loads(asked.out)["text"]
    assert done.out.startswith(first + "\n")
    assert done.out.count("\n") > first.count("\n") + 1


def test_commands():
    said = ["/rset", "/system Speak in rhymes.", "/reset", "/etc/hosts is a file", "/help", "/exit", "not answered"]
    done = chat("-n", "3", "--system", "Be brief.", said=said)
    assert done.out.strip() and "not answered" not in done.err
    for part in ("there is no command /rset; did you mean /reset?", "system message set", "forgotten", "/exit    end"):
        assert part in done.err


def test_old_turns_make_way_with_a_notice():
    said = ["Tell me a story about a cat."] * 4 + ["word " * 100, "Are you there?"]
    done = chat("-n", "12", "--max-model-len", "64", said=said, code=1)
    assert "[the context of 64 tokens is full: the oldest turn was dropped]" in done.err
    assert "error: the message makes a prompt of " in done.err
    assert len(done.out.splitlines()) >= 5


def test_a_model_without_a_template_is_warned_about(tmp_path):
    for file in bundled().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    done = chat(tmp_path, "-n", "3", said=["Hello"])
    assert "has no chat template; ChatML is used" in done.err


def test_invalid_utf8_is_refused():
    done = shardwise("chat", *GREEDY, given=b"caf\xe9\n")
    assert (done.code, done.out, done.left) == (2, "", ())
    assert "standard input, line 1 is not UTF-8: byte 3 is 0xE9" in done.err


def test_ctrl_c_stops_the_answer_and_not_the_program():
    with running("chat", *GREEDY, "--ignore-eos") as (process, mark):
        process.stdin.write(b"Tell me a story.\n")
        process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        process.stdin.write(b"/reset\n")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.decode().splitlines() == ["[stopped]", "forgotten"]
    assert list(marked(mark)) == []


def test_on_a_terminal():
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "chat", *GREEDY, "-n", "4", "--device", "cpu"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment("x", TERM="xterm"), start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            assert "Ctrl-D ends" in until(ours, "> ")
            # Python's readline sees a signal that comes between its prompt and its waiting only with the next one.
            assert "(Ctrl-D or /exit ends)" in until(ours, "> ", again=lambda: process.send_signal(signal.SIGINT))
            os.write(ours, b"Hello\n")
            assert "\n" in until(ours, "> ")
            os.write(ours, b"\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
    os.close(ours)


def until(terminal: int, text: str, again: Callable[[], None] = lambda: None) -> str:
    """What a terminal shows, up to and with `text` at its end; `again` is done first, and whenever nothing comes for 0.5 s."""
    shown = ""
    again()
    while not shown.endswith(text):
        if select.select([terminal], [], [], 0.5)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
        else:
            again()
    return shown
