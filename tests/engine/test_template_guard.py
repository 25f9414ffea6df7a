"""Hostile chat templates run nothing and end in time."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator

import pytest

from shardwise.engine.template import CHATML, ChatTemplate
from shardwise.errors import CheckpointError, RequestError
from tests.engine.test_template import HELLO, SPECIAL, made

CANARY = "arbitrary code was run"
PAYLOADS = [
    *(
        f"{{{{ {start}.__mro__[1].__subclasses__() }}}}"
        for start in ("''.__class__", "[].__class__", "{}.__class__", "().__class__", "messages.__class__", "(1).__class__")
    ),
    *(
        f"{{{{ {name}.__init__.__globals__.os.popen('echo {CANARY}').read() }}}}"
        for name in ("cycler", "joiner", "namespace", "self", "lipsum", "loop", "config", "tools", "dict", "strftime_now")
    ),
    *(
        f"{{{{ {name}.__globals__['__builtins__']['__import__']('os').popen('echo {CANARY}').read() }}}}"
        for name in ("lipsum", "range", "raise_exception", "strftime_now", "dict", "namespace.__init__", "messages.append")
    ),
    *(f"{{{{ {name} | attr('__globals__') | list }}}}" for name in ("lipsum", "strftime_now", "raise_exception", "dict")),
    "{{ '' | attr('__class__') | attr('__mro__') | list }}",
    "{{ ''['__cla' ~ 'ss__'].__mro__ | list }}",
    "{{ '' | attr('_' ~ '_class_' ~ '_') }}{{ (''|attr('__class__')).mro() }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__.__init__.__globals__}'.format(x=cycler) }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': ''}) }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))('') }}",
    "{{ ['{0.__class__.__mro__}'] | map('format', '') | join }}{{ ''.__class__.__mro__[1] }}",
    "{{ messages | map(attribute='__class__.__mro__') | list }}{{ ''.__class__.__mro__[1] }}",
    "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}{{ ns.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__func__.__globals__ }}",
    "{% for x in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "{{ self._TemplateReference__context.environment.from_string('x').module }}",
    "{{ self.__dict__ }}{{ self.__init__.__globals__ }}",
    f"{{% set x = messages.append({{'role': '{CANARY}'}}) %}}",
    f"{{% set x = messages[0].update(role='{CANARY}') %}}{{{{ messages }}}}",
    "{{ messages[0].pop('content') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{% extends '/etc/passwd' %}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{{ ().__reduce_ex__(2) }}{{ (1).__class__.__base__.__subclasses__() }}",
    "{{ url_for.__globals__ }}{{ request.application.__globals__ }}",
    "{{ strftime_now.func_globals.os }}",
]
assert len(PAYLOADS) >= 40


@pytest.fixture(scope="module")
def chatml() -> Iterator[ChatTemplate]:
    template = made(CHATML)
    yield template
    del template
    gc.collect()


@pytest.mark.parametrize("isolated", [True, False])
def test_injected_templates_run_nothing(isolated: bool) -> None:
    for payload in PAYLOADS[:: 5 if isolated else 1]:  # a process takes 0.1 s to start; the sandbox is the same
        template = ChatTemplate({"default": payload}, SPECIAL, isolated=isolated)
        try:
            text = template.render(HELLO)
        except (RequestError, CheckpointError) as error:
            text = str(error).replace(payload, "")
        assert CANARY not in text, payload
        for leak in ("<class", "<function", "<module", "root:", "object at", "'__builtins__'", "Popen"):
            assert leak not in text, (payload, text)


def test_injected_messages_are_only_text(chatml: ChatTemplate) -> None:
    for payload in PAYLOADS:
        assert f"user\n{payload}<|im_end|>" in chatml.render([{"role": "user", "content": payload}])


DOUBLING = "{{% set ns = namespace(x={}) %}}{{% for i in range(99) %}}{{% set ns.x = {} %}}{{% endfor %}}"
BOMBS = {
    "loops": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "text": "{{ 'a' * 10**9 }}",
    "power text": "{{ 'a' * 9**9 }}",
    "tower": "{{ 9**(9**(9**9)) }}",
    "power": "{{ (9**(9**7)) % 7 }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "literal output": "{% for i in range(99999) %}" + "literal " * 1000 + "{% endfor %}",
    "doubling": DOUBLING.format("'aa'", "ns.x ~ ns.x") + "{{ ns.x }}",
    "doubling lists": DOUBLING.format("[1]", "ns.x + ns.x") + "{{ ns.x }}",
    "nested lists": DOUBLING.format("[1]", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
    "replace": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "replace method": "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "percent": "{{ '%01000000000d' % 1 }}",
    "format": "{{ '{:01000000000d}'.format(1) }}",
    "join": "{{ range(99999) | join('x' * 10**5) }}",
    "indent": "{{ ('x\n' * 10**5) | indent(10**6) }}",
    "tojson": "{{ [[[[1] * 99] * 99] * 99] | tojson(indent=10**5) }}",
    "batch": "{{ [1] | batch(10**10, 0) | list }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "sort": "{% for i in range(9999) %}{% if range(99999) | sort(reverse=true) == i %}{% endif %}{% endfor %}",
    "sum": "{{ ([[1] * 999] * 99999) | sum(start=[]) | length }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "compare": "{% for i in range(9999) %}{% if ['x' * 10**7] * 10**4 == ['x' * 10**7] * 10**4 %}{% endif %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "twofold recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "date": "{% for i in range(99999) %}{{ strftime_now('%100000d') }}{% endfor %}",
    "message": "{{ raise_exception('x' * 10**8) }}",
    "source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "constants": "{{ ('a' * 10**8) | upper | lower | upper | lower | upper | lower | length }}{{ 'a' * 10**8 }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end(name: str) -> None:
    """CPU time of the process that renders, start and all: what a busy machine adds to it is not the template's."""
    gc.collect()  # what earlier tests left ends now, and does not count
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    template = made(BOMBS[name])
    with pytest.raises((RequestError, CheckpointError), match="chat template"):
        template.render(HELLO)
    del template
    gc.collect()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 0 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 1


def test_after_a_bomb_the_next_conversation_is_rendered() -> None:
    template = made("{% if messages[0].content == 'bomb' %}" + BOMBS["loops"] + "{{ 9**(9**(9**9)) }}{% endif %}fine")
    for _ in range(2):
        with pytest.raises(RequestError, match="takes more"):
            template.render([{"role": "user", "content": "bomb"}])
        assert template.render(HELLO) == "fine"


def test_a_long_conversation_is_no_bomb() -> None:
    messages = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "word " * 200} for n in range(2001)]
    assert len(made(CHATML).render(messages)) > 2_000_000
