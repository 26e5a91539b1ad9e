"""Replies that were recorded elsewhere, scored: `+rescore=replies`.

Two formats: a JSON list of [messages, response] in the order of the data, response an OpenAI chat
completion; or JSON lines with `id` and `reply`, in any order, id as our samples have it
("style.shake_w/12") or the index alone ("12").
"""

import json
import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ptsearch.benchmarks import Benchmark, Sample, files
from ptsearch.benchmarks.registry import BENCHMARKS, RULES
from ptsearch.benchmarks.sources import load_published
from ptsearch.scoring import metrics
from ptsearch.scoring.ct_dt import Answers, measure

SHOWN = ("acc", "macc", "acc_all", "rr", "dpd", "eod", "fpr", "fpr_answered", "fpr_all")
_PAIR = "[messages, response]"


def rescore(
    benchmark: str, scenario: str, replies: Path, rules: str, root: Path
) -> dict[str, float | int | str]:
    """One row: `acc`, `macc` (among the answered), `rr`, `dpd`, `eod`, `fpr` in percent and `n`, as
    they apply. Of ethics with either denominator: `acc_all` where `acc` is among the answered,
    `fpr_all`, `fpr_answered`; of MMLU `macro` over subjects; under `clean` also `abstained`, and
    why replies were no answers.
    """
    for key, value, known in (("benchmark", benchmark, BENCHMARKS), ("rules", rules, RULES)):
        if value not in known:
            raise ValueError(f"rescore.{key} must be one of {', '.join(known)}, got {value!r}")
    loaded = load_published(BENCHMARKS[benchmark], root)
    if scenario not in loaded.scenarios:
        near = get_close_matches(scenario, loaded.scenarios, n=5) or loaded.scenarios
        raise ValueError(
            f"rescore.scenario: {benchmark} has no {scenario!r}; it has {', '.join(near)}"
        )
    if replies == Path():
        raise ValueError("rescore.replies=FILE is missing: the recorded replies")
    samples = [sample for sample in loaded.samples if sample.scenario == scenario]
    row = score_replies(loaded, samples, read_replies(replies, samples), rules)
    return {"benchmark": benchmark, "scenario": scenario, "rules": rules, **row}


def score_replies(
    benchmark: Benchmark, samples: Sequence[Sample], replies: Sequence[str], rules: str
) -> dict[str, float | int]:
    """Measures of the replies to all samples of one scenario, in their order, that apply."""
    scenario = benchmark.scenarios[samples[0].scenario]
    parse = RULES[rules][scenario.parse]
    pairs = zip(replies, samples, strict=True)
    codes = np.array([parse(reply, sample.question) for reply, sample in pairs])
    facts = [(s.gold, s.group, len(s.question.labels), s.abstain_ok) for s in samples]
    answers = Answers(codes, *map(np.array, zip(*facts, strict=True)))
    found = measure(rules, benchmark.name, scenario.metric, answers)._asdict()
    shown = {key: found[key] for key in SHOWN}
    if scenario.metric == "decline":
        shown |= metrics.declining(codes, answers.gold, answers.n_labels, answers.group)
    if benchmark.name == "mmlu":
        right = answers.codes == answers.gold
        subjects = np.array([sample.stratum for sample in samples])
        means = [metrics.percent(right[subjects == subject]) for subject in np.unique(subjects)]
        shown["macro"] = float(np.mean(means))
    if rules == "clean":
        if answers.abstain_ok.any():
            shown["abstained"] = metrics.percent(answers.codes == answers.n_labels)
        why = metrics.refusals(answers.codes)._asdict()
        shown |= {key: why[key] for key in ("refused", "unusable", "contradictory")}
    shown["n"] = len(samples)
    return {key: round(value, 4) for key, value in shown.items() if not math.isnan(value)}


def read_replies(path: Path, samples: Sequence[Sample]) -> list[str]:
    """One reply to each sample, in their order; anything else is a ValueError naming the place."""
    folder = files.Folder(path.parent, {})
    text = files.read_text(folder, path.name)
    if text.lstrip()[:1] == "[":
        return _recorded(files.parse_json(text, path), path, samples)
    return _by_id(files.read_jsonl(folder, path.name), path, samples)


def _recorded(pairs: object, path: Path, samples: Sequence[Sample]) -> list[str]:
    if not isinstance(pairs, list) or len(pairs) != len(samples):
        number = len(pairs) if isinstance(pairs, list) else 0
        raise ValueError(
            f"{path}: expected {len(samples)} records of {samples[0].scenario}, got {number}"
        )
    replies = []
    for index, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
        where = f"{path}: record {index}"
        try:
            messages, response = pair
            asked = messages[-1]["content"]
            reply = response["choices"][0]["message"]["content"]
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"{where}: expected {_PAIR}, got {str(pair)[:60]}") from error
        if not isinstance(asked, str) or _squeezed(_question_text(sample)) not in _squeezed(asked):
            raise ValueError(
                f"{where}: expected the prompt of {sample.id}, got {str(asked)[-60:]!r}: "
                "are these replies of another benchmark?"
            )
        if not isinstance(reply, str):
            raise ValueError(f"{where}: expected a reply of text, got {reply!r}")
        replies.append(reply)
    return replies


def _by_id(records: Sequence[files.Record], path: Path, samples: Sequence[Sample]) -> list[str]:
    places = {sample.id: place for place, sample in enumerate(samples)}
    places |= {sample.id.split("/", 1)[1]: place for place, sample in enumerate(samples)}
    replies: dict[int, str] = {}
    for record in records:
        if isinstance(record.value, dict) and isinstance(record.value.get("id"), int):
            record.value["id"] = str(record.value["id"])
        name = files.field(record, "id")
        if name not in places:
            raise ValueError(
                f"{record.where}: no sample {name!r} in {samples[0].scenario}; "
                f"expected ids like {samples[0].id!r}"
            )
        if places[name] in replies:
            raise ValueError(f"{record.where}: the id {name!r} stands twice")
        replies[places[name]] = files.field(record, "reply")
    missing = [sample.id for place, sample in enumerate(samples) if place not in replies]
    if missing:
        raise ValueError(
            f"{path}: expected {len(samples)} replies, {len(missing)} are missing, "
            f"{json.dumps(missing[0])} first"
        )
    return [replies[place] for place in range(len(samples))]


def _question_text(sample: Sample) -> str:
    """What the prompt holds of the item: without the task message, which comes first."""
    if isinstance(sample.prompt, str):
        return sample.prompt.rsplit("\n\n", 1)[-1]
    return sample.prompt[-1].content.split("\n", 1)[-1]


def _squeezed(text: str) -> str:
    return " ".join(text.split())
