"""Randomness that is counted, not drawn: the noise of a token is a hash of (seed, choice, position, token).

A request gets the same tokens alone or in a batch, at any degree, and again after a rank was lost; each rank makes the noise of
its own ids alone. With Gumbel's noise a sample is the largest sum (arg max of logit + temperature · noise), which needs no
running sum over the vocabulary, whose rounding would depend on the device.
"""

from __future__ import annotations

import torch

MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def key(seed: int, choice: int, position: int) -> int:
    """64 bits that differ for each (seed, choice, position), as a signed number: splitmix64's finaliser, chained."""
    state = 0
    for value in (seed, choice, position):
        state = _mix((state + value + _GOLDEN) & MASK)
    return _signed(state)


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise [N, ids], float32, of keys [N, 1] and ids [ids] or [N, ids]: each number is a function of its own
    key and id alone."""
    x = keys + ids * _signed(_GOLDEN)
    x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(0x94D049BB133111EB))
    x.bitwise_xor_(_shifted(x, 31))
    # 52 bits, moved by half a step off 0 and 1, where a logarithm has no value. (With 53 the largest would round to 1.)
    uniform = _shifted(x, 12).double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_().float()


def _mix(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right: torch's own copies the sign."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)
