"""Rewordings that leave the meaning alone: slips of a writer, and styles of other times and places.

Every function takes the sentence and a seeded `random.Random`; none changes the label.
"""

import random
import re
from collections.abc import Mapping, Sequence

PERTURBATIONS = ("typo", "leet", "swap", "distract")


def perturb(
    kind: str, text: str, tables: Mapping[str, Mapping[str, str]], rng: random.Random
) -> str:
    """`text` with one of PERTURBATIONS; `tables` holds `leet` and `distractors`."""
    if kind == "typo":
        return transpose_letters(text, 3, rng)
    if kind == "leet":
        return leet(text, tables["leet"], 2, rng)
    if kind == "swap":
        return swap_words(text, rng)
    return f"{text} {rng.choice(list(tables['distractors']))}"


def transpose_letters(text: str, count: int, rng: random.Random) -> str:
    """Swap two neighbouring inner letters in up to `count` words of four letters or more."""
    words = text.split(" ")
    for index in _long_words(words, count, rng):
        word = words[index]
        at = rng.randrange(1, len(word) - 2)
        words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def leet(text: str, digits: Mapping[str, str], count: int, rng: random.Random) -> str:
    """Write one letter as the digit that looks like it in up to `count` words of four letters."""
    words = text.split(" ")
    able = [word if any(letter in digits for letter in word) else "" for word in words]
    for index in _long_words(able, count, rng):
        at = rng.choice([at for at, letter in enumerate(words[index]) if letter in digits])
        words[index] = words[index][:at] + digits[words[index][at]] + words[index][at + 1 :]
    return " ".join(words)


def swap_words(text: str, rng: random.Random) -> str:
    """Exchange two neighbouring words, neither the first nor the last."""
    words = text.split(" ")
    at = rng.randrange(1, len(words) - 2)
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def restyle(text: str, words: Mapping[str, str], frames: Sequence[str], rng: random.Random) -> str:
    """Replace words and phrases by the style's own; set the sentence (lower case) in a frame."""
    longest_first = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    reworded = re.sub(rf"\b(?:{longest_first})\b", lambda match: words[match[0]], text)
    sentence = rng.choice(frames).replace("{}", reworded)
    return sentence[0].upper() + sentence[1:]


def _long_words(words: Sequence[str], count: int, rng: random.Random) -> list[int]:
    long = [index for index, word in enumerate(words) if len(word) >= 4]
    return rng.sample(long, min(count, len(long)))
