"""What a front finds out about its model's text side before it answers anybody; and how often dead fronts are replaced."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest

from shardwise.engine.hub import bundled
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import UserError
from shardwise.server.checks import open_text, warnings
from shardwise.server.fleet import MOST, WITHIN_S, replaceable


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled model in a folder of its own, to be changed."""
    for file in bundled().iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def change(path: Path, **values: object) -> None:
    """Writes a JSON file anew with other values; None takes one away."""
    found = {**json.loads(path.read_text()), **values}
    path.unlink()
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def setup_of(folder: Path) -> Setup:
    return resolve(Options(str(folder), device="cpu"))


def test_the_bundled_model_has_nothing_to_warn_of_but_its_device() -> None:
    setup = setup_of(bundled())
    assert [line[:6] for line in warnings(setup, open_text(setup, None))] == ["no GPU"]


def test_without_a_template_chatml_is_used_and_said(model: Path) -> None:
    change(model / "tokenizer_config.json", chat_template=None)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    setup = setup_of(model)
    first, *_ = warnings(setup, open_text(setup, None))
    assert "ChatML" in first and "--chat-template" in first


def test_a_template_of_ones_own_goes_first(model: Path, tmp_path: Path) -> None:
    change(model / "tokenizer_config.json", chat_template="{% broken")
    (model / "chat_template.jinja").unlink(missing_ok=True)
    setup = setup_of(model)
    with pytest.raises(UserError, match=r"tokenizer_config\.json.*line 1.*--chat-template"):
        open_text(setup, None)
    mine = tmp_path / "mine.jinja"
    mine.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    text = open_text(setup, str(mine))
    assert text.template.render([{"role": "user", "content": "a"}]) == "<a>"
    for broken, words in (("{{ nothing.at.all }}", "mine.jinja"), ("{{ raise_exception('never') }}", "never")):
        mine.write_text(broken)
        with pytest.raises(UserError, match=words):
            open_text(setup, str(mine))


def test_a_tokenizer_of_another_model_is_refused(model: Path) -> None:
    added = [{"id": 4096 + n, "content": f"<x{n}>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for n in range(100)]  # fmt: skip
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    setup = setup_of(bundled())
    vocab = setup.layout.model.vocab
    for count in (10, 100):
        more = [{**token, "id": vocab + n} for n, token in enumerate(added[:count])]
        change(model / "tokenizer.json", added_tokens=[*tokens, *more])
        changed = setup_of(model)
        if count == 10:
            assert any(f"ids {vocab} to {vocab + 9}" in line for line in warnings(changed, open_text(changed, None)))
        else:
            with pytest.raises(UserError, match=rf"up to {vocab + 99}, .* ends at {vocab - 1}"):
                open_text(changed, None)


def test_dead_fronts_are_replaced_so_often_and_no_more() -> None:
    deaths: deque[float] = deque()
    assert [replaceable(deaths, float(n)) for n in range(MOST + 1)] == [True] * MOST + [False]
    assert replaceable(deaths, MOST + WITHIN_S)  # by then, most are long ago
