"""The channels of gpt-oss (OpenAI's harmony format): analysis is reasoning, final is content, commentary may be a call.

An answer begins behind `<|start|>assistant`, so with a channel or a recipient. Knows only the text of the special tokens.
"""

from __future__ import annotations

import re

from shardwise.server.answer.jsoncalls import Source
from shardwise.server.answer.tape import NotCall, Reading

MOST_HEADER = 512  # characters before <|message|>

_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_CHANNELS = ("analysis", "commentary", "final")
_TO = re.compile(r"(?:^|\s)to=functions\.([A-Za-z0-9_-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]+)")
_UP_TO_MARK = re.compile(r"[^<]*")


def harmony(source: Source) -> Reading[None]:
    """Read messages to the end. What has no header, or one that says nothing known, is content as it stands."""
    tape, outlet = source.tape, source.outlet
    mark = ""  # that began the message to be read

    def message() -> Reading[None]:
        nonlocal mark
        header, mark = mark, ""
        header += yield from _header(source)
        channel, recipient = _CHANNEL.search(header), _TO.search(header)
        if recipient:
            yield from source.after_name(recipient[1])
            yield from tape.space()
            yield from tape.closing(*_ENDS)
        elif channel and channel[1] in _CHANNELS and " to=" not in header:
            tape.release()
            analysis = channel[1] == "analysis"
            end = yield from tape.until((*_ENDS, "<|start|>"), outlet.think if analysis else outlet.say)
            mark = end if end == "<|start|>" else ""
            if analysis:
                outlet.end_thought()
        else:
            raise NotCall
        tape.drop()

    if (yield from tape.peek(4)) == " to=":  # a recipient before the first mark
        yield from source.attempt(message)
    while mark or (mark := (yield from tape.until(("<|start|>", "<|channel|>"), outlet.say))):
        yield from source.attempt(message)


def _header(source: Source) -> Reading[str]:
    """Read what stands before `<|message|>`, and over it."""
    tape, parts, used = source.tape, [""], 0
    while True:
        while text := (yield from tape.run(_UP_TO_MARK, MOST_HEADER - used)):
            parts.append(text)
            used += len(text)
        if (yield from tape.literal("<|message|>")):
            return "".join(parts)
        if used >= MOST_HEADER:
            raise NotCall
        mark = yield from tape.expect("<|channel|>", "<|constrain|>")
        parts.append(mark)
        used += len(mark)
