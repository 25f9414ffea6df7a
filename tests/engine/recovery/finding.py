"""Whether a planted bug is found, and by what: first the simulation, seed by seed, then the model of the protocol.

python -m tests.engine.recovery.finding [--seeds 500] [words of names]
"""

from __future__ import annotations

import argparse
import time

from tests.engine.recovery.model import explore
from tests.engine.recovery.plant import Plant, planted
from tests.engine.recovery.plants import PLANTS
from tests.engine.recovery.simulation import live


def found(plant: Plant, seeds: int, first: int = 0) -> str | None:
    """What does not hold with the bug; None where all does."""
    with planted(plant) as parts:
        for seed in range(first, first + seeds):
            try:
                live(seed, parts)
            except Exception as error:
                return f"seed {seed}: {type(error).__name__} {error}"
        if plant.module.startswith("engine."):
            try:
                explore(2, 1, steps=2, parts=parts)
            except Exception as error:
                return f"model: {error}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    for plant in PLANTS:
        if not asked.names or any(name in plant.name for name in asked.names):
            began = time.perf_counter()
            what = found(plant, asked.seeds)
            print(
                f"{time.perf_counter() - began:5.1f} s  {plant.name:50}  {'NOT FOUND' if what is None else what[:110]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
