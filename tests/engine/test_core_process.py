"""The engine as a real process: the same tokens as here, ends that are honest, and nothing left of it, whoever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from shardwise.engine import bridge
from shardwise.engine.core_process import CoreProcess
from shardwise.engine.engine import Engine
from shardwise.engine.remote import RemoteEngine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import TIME_UP, Unavailable, UserError
from shardwise.sched.events import Emitted, Event
from shardwise.sched.request import SamplingParams
from tests.engine.test_bridge import OUT_S, Heard, until
from tests.processes import living

GONE_S = 10.0


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[[str], Path]) -> Setup:
    return resolve(Options(str(checkpoint("llama")), tp=2, dtype="float32", device="cpu", threads=1, cache_memory=2**21))


def greedy(count: int, **more: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **more)


@pytest.fixture(scope="module")
def core(tiny: Setup) -> Iterator[CoreProcess]:
    """One for all tests that leave it as it was."""
    with CoreProcess(tiny) as core:
        processes = tree(core)
        assert len(processes) == 3  # the core and two ranks
        yield core
    assert living(processes, GONE_S) == []


def ask(core: CoreProcess, go: Callable[[RemoteEngine], Awaitable[None]]) -> None:
    """go(remote) on a loop."""

    async def main() -> None:
        remote = await RemoteEngine.open(core.connect(), core.setup, core.wait)
        await go(remote)
        remote.close()

    asyncio.run(main())


def kill(setup: Setup, go: Callable[[RemoteEngine, CoreProcess], Awaitable[None]]) -> None:
    """go(remote, core), a core of its own; nothing is left of its processes."""
    with CoreProcess(setup) as core:
        processes = tree(core)
        ask(core, lambda remote: go(remote, core))
    assert living(processes, GONE_S) == []


def tree(core: CoreProcess) -> list[psutil.Process]:
    process = psutil.Process(core.pid)
    return [process, *process.children(recursive=True)]


def test_the_same_tokens_as_in_this_process(core: CoreProcess, tiny: Setup) -> None:
    cases = [
        ((1, 5, 9), greedy(20)),
        ((2, 7), SamplingParams(n=3, seed=5, max_tokens=12, ignore_eos=True)),
        (tuple(range(60)), greedy(9, logprobs=2)),
    ]
    with Engine(tiny, "threads") as engine:
        wanted = [
            sorted(((e.choice, e.chosen) for e in engine.generate(p, params)), key=lambda pair: pair[0]) for p, params in cases
        ]

    async def go(remote: RemoteEngine) -> None:
        for (prompt, params), tokens in zip(cases, wanted, strict=True):
            heard = Heard()
            await remote.admitted(remote.submit(prompt, params, heard.put))
            assert (await heard.ended()).error is None
            found = [(e.choice, e.chosen.token) for e in heard.events if isinstance(e, Emitted)]
            assert sorted(found, key=lambda pair: pair[0]) == [(choice, chosen.token) for choice, chosen in tokens]
        status = await remote.status()
        assert [rank.pid for rank in status.ranks] == sorted(p.pid for p in tree(core)[1:])
        assert all(rank.weight_bytes == tiny.layout.arena_bytes(rank.rank) and rank.kv_bytes for rank in status.ranks)
        assert status.failed == 0 and status.tokens >= sum(map(len, wanted))

    ask(core, go)


def test_aborts_and_leavers_free_their_pages(core: CoreProcess, tiny: Setup) -> None:
    async def go(remote: RemoteEngine) -> None:
        other = await RemoteEngine.open(core.connect(), tiny)
        first, slow, left = Heard(), Heard(), Heard()
        numbers = [remote.submit((n, 3), greedy(100), first.put) for n in range(3)]
        await other.admitted(other.submit((9,), greedy(100), left.put))
        late = remote.submit((8, 8), greedy(100), slow.put, timeout_s=0.0)
        assert (await slow.ended()).error == TIME_UP and late == 4
        for number in numbers:
            remote.abort(number)
        other.close()

        async def idle() -> bool:
            status = await remote.status()
            return not status.slots and all(group.free == group.total for group in status.pages)

        for _ in range(int(OUT_S / 0.01)):
            if await idle():
                break
            await asyncio.sleep(0.01)
        assert await idle()

    ask(core, go)


def test_a_killed_rank_is_named_to_all(tiny: Setup) -> None:
    async def go(remote: RemoteEngine, core: CoreProcess) -> None:
        other = await RemoteEngine.open(core.connect(), tiny, core.wait)
        victim = (await remote.status()).ranks[1].pid
        heard = [Heard(), Heard()]
        for asked, each in zip((remote, other), heard, strict=True):
            await asked.admitted(asked.submit((1, 2), greedy(100), each.put))
        os.kill(victim, signal.SIGKILL)
        for asked, each in zip((remote, other), heard, strict=True):
            # What had ended before the signal arrived has ended well.
            error = (await each.ended()).error
            assert error is None or f"process {victim} was killed by SIGKILL" in error
            reason = await asyncio.wait_for(asked.gone(), OUT_S)
            assert reason.startswith("rank 1 was lost during generate") and f"process {victim} was killed" in reason
        assert await asyncio.to_thread(core.wait, OUT_S) == remote.lost
        with pytest.raises(Unavailable, match="rank 1 was lost"):
            core.connect()

    kill(tiny, go)


def test_a_killed_core_ends_every_request_with_the_cause(tiny: Setup) -> None:
    async def go(remote: RemoteEngine, core: CoreProcess) -> None:
        told: list[str] = []
        core.watch(told.append)
        os.kill(core.pid, signal.SIGSTOP)  # so that nothing ends before the signal
        heard = [Heard() for _ in range(3)]
        for n, each in enumerate(heard):
            remote.submit((n, 2), greedy(100), each.put)
        os.kill(core.pid, signal.SIGKILL)
        cause = f"the engine's process {core.pid} was killed by SIGKILL (the kernel does that when memory runs out)"
        for each in heard:
            assert (await each.ended()).error == cause
        await until(lambda: told == [cause])
        with pytest.raises(Unavailable, match="was killed by SIGKILL"):
            await remote.admitted(2)

    kill(tiny, go)


def test_signals_of_a_terminal_or_a_service_are_for_the_parent(core: CoreProcess) -> None:
    async def go(remote: RemoteEngine) -> None:
        for process in tree(core):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        heard = Heard()
        remote.submit((1, 2), greedy(20), heard.put)
        assert (await heard.ended()).error is None and len(heard.tokens) == 20

    ask(core, go)


PARENT = """
import sys
from pathlib import Path
from shardwise.engine.bridge import unpack_setup
from shardwise.engine.core_process import CoreProcess
setup = unpack_setup(Path(sys.argv[1]).read_bytes())
say = lambda *_: print("loading", flush=True)
with CoreProcess(setup, say) as core:
    front = core.connect()
    assert not {"torch", "numpy"} & set(sys.modules)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("phase", ["loading", "ready"])
def test_a_killed_parent_leaves_nothing(tiny: Setup, tmp_path: Path, phase: str) -> None:
    (tmp_path / "setup").write_bytes(bridge.pack_setup(tiny))
    command = [sys.executable, "-c", PARENT, str(tmp_path / "setup")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        while (line := parent.stdout.readline().strip()) != phase:
            assert line == "loading"
        processes = psutil.Process(parent.pid).children(recursive=True)
        assert len(processes) == 3
        parent.kill()
    assert living(processes, GONE_S) == []


def test_the_core_imports_no_torch(core: CoreProcess) -> None:
    maps = Path(f"/proc/{core.pid}/maps").read_text()
    assert "libtorch" not in maps and "msgspec" in maps


def test_what_the_user_can_mend_is_a_user_s_error(tiny: Setup, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        CoreProcess(replace(tiny, folder=tmp_path))


def test_long_prompts_do_not_hold_the_others_up(core: CoreProcess, figures: Callable[..., None]) -> None:
    """A hundred thousand ids at a time are read, checked and refused for want of room while another's tokens flow."""

    async def go(remote: RemoteEngine) -> None:
        done, answers = asyncio.Event(), 0

        async def flood() -> None:
            """Twenty a second."""
            nonlocal answers
            reader, writer = await asyncio.open_unix_connection(sock=core.connect())
            asked, frames = bridge.frame(bridge.Submit(1, (7,) * 100_000, greedy(10))), bridge.Frames()
            while not done.is_set() or answers < 5:
                writer.write(asked)
                (message,) = frames.feed(await reader.read(2**16))
                assert isinstance(message, bridge.Refused) and "the prompt has 100000 tokens" in message.message
                answers += 1
                with suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), 0.05)
            writer.close()

        alone = await gaps(remote)
        flooding = asyncio.create_task(flood())
        beside = await gaps(remote)
        done.set()
        await flooding
        longest = {"longest_alone_s": alone[-1], "longest_beside_s": beside[-1]}
        figures("beside prompts of 100 000 ids", median_alone_s=alone[60], median_beside_s=beside[60], **longest)

    ask(core, go)


async def gaps(remote: RemoteEngine) -> list[float]:
    """The seconds between what comes of two requests of 80 tokens, in rising order."""
    found: list[float] = []
    for _ in range(2):
        heard = Heard()

        def sink(event: Event, heard: Heard = heard) -> None:
            found.append(time.monotonic())
            heard.put(event)

        remote.submit((1, 2), greedy(80), sink)
        assert (await heard.ended()).error is None and len(heard.tokens) == 80
    return sorted(b - a for a, b in pairwise(found))
