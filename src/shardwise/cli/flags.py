"""Flags that commands share, under the names that users of vLLM and llama.cpp know, and what becomes of them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from shardwise.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shardwise.engine.setup import Options
    from shardwise.sched.request import SamplingParams

SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "seed", "max_tokens", "min_tokens", "logprobs",
)  # fmt: skip

DTYPE_ALIASES = {
    "half": "float16", "fp16": "float16", "f16": "float16", "bf16": "bfloat16",
    "float": "float32", "fp32": "float32", "f32": "float32",
}  # fmt: skip

SEEDS = 2**32
"""A drawn seed is below this: short enough to be typed again."""

MAX_TOKENS = 256
"""Where nobody says how many to generate: a few paragraphs, and an end for models that never stop by themselves."""

DEGREES = "numbers of ranks to cut the model over, one after another (default: 1,2,3)"

UNITS = {
    "": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors of one line, and that knows the nearest flag to an unknown one."""

    def __init__(self, command: str, description: str, taken: str = "MODEL") -> None:
        """`taken` is what the command may be given besides flags, which are too many for the line of usage."""
        super().__init__(
            prog=f"shardwise {command}",
            usage=f"shardwise {command} {f'[{taken}] ' if taken else ''}[flags]",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed flags; UserError for anything that cannot be understood."""
        args, extra = self.parse_known_args(self._joined(argv))
        if extra:
            flag = next((word for word in extra if word.startswith("-")), None)
            self.error(f"unexpected {extra[0]!r}; a text with spaces needs quotes" if flag is None else self._nearest(flag))
        return args

    @property
    def actions(self) -> list[argparse.Action]:
        """Everything that was added, in order."""
        return self._actions

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; `{self.prog} --help` lists the flags")

    def _nearest(self, flag: str) -> str:
        name = flag.split("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.7)
        return f"unknown flag {name}" + (f", nearest: {near[0]}" if near else "")

    def _joined(self, argv: Sequence[str]) -> list[str]:
        """`--shares -1,2` as `--shares=-1,2`: argparse would take the value for a flag and speak of a missing one."""
        joined: list[str] = []
        for word in argv:
            action = self._option_string_actions.get(joined[-1]) if joined else None
            value = re.match(r"-[^-]", word) and word not in self._option_string_actions
            if action is not None and action.nargs is None and value:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined


def add_model(parser: Parser, *, several: bool = False) -> None:
    """MODEL and how it is cut: what every command takes. `several` degrees make `args.tp` a tuple."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a folder, org/name on the hub, or nothing for the model that is bundled"
    )
    cut = parser.add_argument_group("the cut")
    cut.add_argument(
        "-tp", "--tensor-parallel-size", "--tp", "--tp-size", "--num-shard",
        dest="tp", type=degrees if several else int, metavar="1,2,3" if several else "N",
        help=DEGREES if several else "ranks to cut the model over, any number up to its query heads (default: 1)",
    )  # fmt: skip
    cut.add_argument(
        "-ts", "--tensor-split", "--shares",
        dest="shares", type=shares, metavar="3,1", help="proportions, one a rank (default: even)",
    )  # fmt: skip
    cut.add_argument(
        "--enable-expert-parallel", "--expert-parallel",
        dest="expert_parallel", action="store_true", help="deal out whole experts (default: every rank has a part of each)",
    )  # fmt: skip
    cut.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16 (default: auto)")
    cut.add_argument(
        "-q", "--quantization",
        metavar="KIND", help="int8 or int4: quantise the weights while they are loaded (default: as they are stored)",
    )  # fmt: skip
    cut.add_argument(
        "--quantization-group-size", type=count, metavar="N",
        help="weights that share a scale: 16, 32, 64 or 128 (default: 64 for int8, 32 for int4)",
    )  # fmt: skip
    cut.add_argument(
        "--kv-cache-dtype", default="auto", help="auto (as --dtype), float32, bfloat16, float16 or int8 (default: auto)"
    )
    cut.add_argument("--revision", help="branch, tag or commit of a model on the hub")


def add_running(parser: Parser, stats: str = "times and rates on standard error") -> None:
    """Where the ranks run and what they may take. `stats` is what --stats shows."""
    where = parser.add_argument_group("where it runs")
    where.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto, the GPUs if there are any)")
    where.add_argument(
        "--memory", type=memory, metavar="SIZE", help="what each rank may take, as 1500MiB or 16GB (default: what is free)"
    )
    where.add_argument(
        "--max-model-len", "--context-length", "-c", "--ctx-size",
        dest="max_model_len", type=context, metavar="N",
        help="tokens of prompt and answer together (default: auto, what the model and the memory allow)",
    )  # fmt: skip
    where.add_argument(
        "--kv-cache-memory",
        dest="cache_memory",
        type=memory,
        metavar="SIZE",
        help="what each rank keeps for its KV cache (default: what is left)",
    )
    where.add_argument(
        "--gpu-memory-utilization", "--mem-fraction-static",
        dest="device_share", type=fraction, metavar="X",
        help="the part of each GPU's memory that its rank may take, instead of --memory",
    )  # fmt: skip
    where.add_argument(
        "--max-num-seqs", "--max-running-requests",
        dest="max_num_seqs", type=count, metavar="N", help="sequences that run at once (default: what suits)",
    )  # fmt: skip
    where.add_argument(
        "--max-num-batched-tokens", type=count, metavar="N", help="the most tokens of one step (default: what suits)"
    )
    where.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True, help="find prompts that begin alike"
    )
    where.add_argument("-t", "--threads", type=count, metavar="N", help="CPU threads a rank (default: all, shared equally)")
    where.add_argument(
        "--cpu-threads-bind", "--cpu-omp-threads-bind", "--cpu-range",
        dest="cores", default="auto", metavar="WHERE",
        help="processors of each rank: auto (of its own where there are several memory nodes), none, cores (of its own), or a "
        "list for each as 0-3|4-7 (default: auto)",
    )  # fmt: skip
    where.add_argument(
        "--load-format", default="auto", metavar="FORMAT", help="auto, or dummy for random weights (default: auto)"
    )
    where.add_argument("--stats", "--verbose", "-v", action="store_true", help=stats)


def add_sampling(parser: Parser, max_tokens: str) -> None:
    """How tokens are chosen. `max_tokens` says what stands where it is not given."""
    how = parser.add_argument_group("sampling", "Defaults are the checkpoint's generation_config.json, else those in brackets.")
    how.add_argument("--temperature", "--temp", type=float, metavar="T", help="0 takes the likeliest token (1.0)")
    how.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens that together have P (1.0)")
    how.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens (0, all)")
    for name, each in (("presence", ""), ("frequency", ", for each time")):
        text = f"taken from the logits of tokens that were generated before{each} (0)"
        how.add_argument(f"--{name}-penalty", type=float, metavar="X", help=text)
    how.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 against what is there already (1.0)")
    how.add_argument("--min-p", type=float, metavar="P", help="only tokens at least P times as likely as the likeliest (0)")
    how.add_argument("--seed", type=int, metavar="N", help="repeats a run (a random one, which is printed)")
    how.add_argument(
        "--max-tokens", "-n", "--n-predict", "--max-new-tokens",
        dest="max_tokens", type=int, metavar="N", help=f"the most tokens to generate ({max_tokens})",
    )  # fmt: skip
    how.add_argument("--min-tokens", type=int, metavar="N", help="no end before N tokens (0)")
    how.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given several times")
    how.add_argument("--ignore-eos", action="store_true", help="go on after the model's end token")


def options(args: argparse.Namespace) -> Options:
    """What `engine.setup.resolve` takes. Under torchrun, each of its processes is a rank."""
    from shardwise import env
    from shardwise.engine.hub import BUNDLED
    from shardwise.engine.setup import Options

    place = env.torchrun()
    tp = args.tp if args.tp is not None or place is None else place.size
    return Options(
        model=args.model if args.model is not None else BUNDLED,
        tp=tp,
        shares=args.shares,
        dtype=dtype(args.dtype),
        kv_cache_dtype=dtype(args.kv_cache_dtype),
        device=args.device,
        load_format=args.load_format,
        memory=args.memory if args.device_share is None else _of_gpus(args, tp or len(args.shares or (1.0,))),
        max_model_len=args.max_model_len,
        threads=args.threads,
        revision=args.revision,
        expert_parallel=args.expert_parallel,
        quantization=args.quantization,
        quantization_group=args.quantization_group_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        enable_prefix_caching=args.enable_prefix_caching,
        cache_memory=args.cache_memory,
        cores=args.cores,
    )


def _of_gpus(args: argparse.Namespace, tp: int) -> int:
    """The bytes of a GPU that --gpu-memory-utilization stands for."""
    from shardwise.engine.devices import gpu_bytes

    if args.memory is not None:
        raise UserError("--memory and --gpu-memory-utilization say the same; give one of them")
    total = 0 if args.device == "cpu" else gpu_bytes(tp)
    if not total:
        raise UserError("--gpu-memory-utilization is a part of a GPU's memory, and there is none here; use --memory SIZE")
    return int(args.device_share * total)


def sampling(args: argparse.Namespace, defaults: Mapping[str, Any]) -> SamplingParams:
    """The flags over `defaults`, with a seed drawn where none was given; RequestError for values out of range."""
    import secrets

    from shardwise.sched.request import SamplingParams

    unset = {"seed": secrets.randbelow(SEEDS), "max_tokens": None}
    return SamplingParams(**{**unset, **defaults, **sampling_fields(args)})


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags that were given, by the names of SamplingParams."""
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name, None) is not None}
    if args.stop:
        given["stop"] = tuple(args.stop)
    return {**given, "ignore_eos": True} if args.ignore_eos else given


def dtype(name: str) -> str:
    """The dtype that a short name stands for; other names as they are."""
    return DTYPE_ALIASES.get(name, name)


# --- values ---------------------------------------------------------------------------------------------------------------


def shares(text: str) -> tuple[float, ...]:
    """3,1 as numbers; whether they suit the degree is the layout's to say."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers; give one a rank, as 3,1 or 0.5,0.25,0.25"
        ) from None


def degrees(text: str) -> tuple[int, ...]:
    """1,2,3 as numbers of at least 1, each once."""
    found = tuple(count(part) for part in text.split(","))
    for n, degree in enumerate(found):
        if degree in found[:n]:
            raise argparse.ArgumentTypeError(f"{text!r} has {degree} twice; give each degree once")
    return found


def memory(text: str) -> int:
    """A size in bytes: 1500MiB, 16GB, 1.5g, 1073741824."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write a number of bytes, or 1500MiB, 16GiB or 16GB")
    size = int(float(found[1]) * unit)
    if not 0 < size < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is {size} bytes; it takes 1 byte to 8 EiB")
    return size


def fraction(text: str) -> float:
    """A number above 0, up to 1."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; it takes more than 0, and 1 at the most")
    return number


def context(text: str) -> int | None:
    """A number of tokens, or None for "auto"."""
    return None if text == "auto" else count(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small; it takes at least 1")
    return number
