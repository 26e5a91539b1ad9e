"""Kill -9 a build and an evaluation of the tiny model at random moments, then run it again.

Each time the cache must then hold what an undisturbed run makes, byte for byte (but for what is
measured), and nothing else. Usage: PYTHONPATH=.:tests python experiments/kill_moments.py [KILLS]
"""

import random
import sys
import tempfile
from functools import partial
from pathlib import Path

import killed
from tiny import write_tiny_model

SEED = 0


def main(kills: int) -> None:
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = write_tiny_model(folder / "model")
        seconds = killed.undisturbed(model, folder / "undisturbed")
        expected = killed.contents(folder / "undisturbed")
        same = hit = 0
        for number in range(kills):
            cache, moment = folder / str(number), rng.uniform(0, seconds)
            was_hit = killed.kill_at(moment, partial(killed.start, model, cache))
            killed.undisturbed(model, cache)
            found = killed.contents(cache)
            hit, same = hit + was_hit, same + (found == expected)
            if found != expected:
                names = {n for n in (*found, *expected) if found.get(n) != expected.get(n)}
                sys.stdout.write(f"{number}, after {moment:.2f} s: {sorted(names)[:5]}\n")
        sys.stdout.write(
            f"{kills} kills in {seconds:.1f} s, {hit} while at work: {same} the same\n"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
