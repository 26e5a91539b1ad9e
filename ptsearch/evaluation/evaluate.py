"""Variant x benchmark -> prediction rows: prompts are rendered and answered, and kept raw."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks import Benchmark, Prompt, Sample, Scenario
from ptsearch.benchmarks.parsing import without_thoughts
from ptsearch.config import EngineConfig
from ptsearch.evaluation import predictions
from ptsearch.evaluation.fit import fit
from ptsearch.models.base_model import BaseModel
from ptsearch.models.prompting import Choices, Prompter
from ptsearch.shared import EVALUATING, Report

EVALUATE_VERSION = 7  # bump when equal inputs would give another reply or log-probability
FEW_TOKENS = 256  # of one forward pass, after a worker was killed
LATENCY_SEED, LATENCY_VERSION = 0, 3  # 2: with `rows`, 3: weights are as stored


@dataclass(frozen=True)
class Task:
    """What one worker evaluates: a checkpoint on benchmarks, into files."""

    label: str
    checkpoint: Path
    outputs: Mapping[str, Path]  # benchmark name -> predictions file
    latency: Path  # where the latency goes
    engine: EngineConfig
    template: Mapping[str, object] = field(default_factory=dict)  # arguments of the chat template


class Asker(NamedTuple):
    """An engine, and what makes its prompts."""

    engine: engines.Engine
    prompter: Prompter


def asker(engine: engines.Engine, template: Mapping[str, object] = MappingProxyType({})) -> Asker:
    return Asker(engine, Prompter(engine.tokenizer, template))


def key(
    variant_id: str,
    benchmark: Benchmark,
    settings: EngineConfig,
    template: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """Name of a variant's predictions: all that changes them is in its hash."""
    what = json.dumps(
        [benchmark.digest, settings.dtype, settings.device, EVALUATE_VERSION]
        + ([settings.name, settings.form] if settings.name != "transformers" else [])
        + ([settings.too_long] if settings.too_long != "drop" else [])
        + ([dict(template)] if template else []),
        sort_keys=True,
    )
    return f"{variant_id}-{benchmark.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def with_dtype(settings: EngineConfig, _: Report) -> EngineConfig:
    """The settings with a definite dtype, chosen where the model will run."""
    return engines.with_dtype(settings)


def check_runs(base: BaseModel, settings: EngineConfig, _report: Report) -> None:
    """ValueError: the engine has no room for the base model, in the form that variants run in."""
    if settings.name == "transformers":
        engines.check_fits(base.path, base.trust_remote_code, settings)


def run(task: Task, benchmarks: Sequence[Benchmark], report: Report) -> str:
    """Evaluate what `task.outputs` names; files appear when whole.

    Returns why the variant may not vote, "" = it may: its output is not finite, or what makes it
    another variant never acts on these benchmarks. What another process evaluates is waited for.
    """
    folder = next(iter(task.outputs.values())).parents[1]
    waiting = partial(report, "waiting for another process that evaluates", 0, 1)
    with store.lease(folder, task.checkpoint.name, waiting):
        missing = {name: path for name, path in task.outputs.items() if not path.exists()}
        return _run(replace(task, outputs=missing), benchmarks, report) if missing else ""


def _run(task: Task, benchmarks: Sequence[Benchmark], report: Report) -> str:
    settings = task.engine
    if settings.name == "transformers":  # the same answers, sooner
        settings = replace(settings, form="dense")
    with engines.opened(store.intact(task.checkpoint), settings) as engine:
        asking = asker(engine, task.template)
        benchmarks = [fitted(asking, benchmark) for benchmark in benchmarks]
        if reason := unexercised(asking, benchmarks):
            return reason
        try:
            _predict(asking, task, [b for b in benchmarks if b.name in task.outputs], report)
        except engines.NonFiniteLogitsError as error:
            return str(error)
    return ""


def smaller(task: Task) -> Task:
    """The same in forward passes of fewer tokens."""
    return replace(task, engine=replace(task.engine, max_tokens=FEW_TOKENS))


def unexercised(asker: Asker, benchmarks: Sequence[Benchmark]) -> str:
    """Which run-time setting never acts on any sample, "" = none."""
    asked = [(b.scenarios[s.scenario], s) for b in benchmarks for s in b.samples]
    new = [scenario.max_new_tokens for scenario, _ in asked if scenario.mode == "generate"]
    local = asker.engine.local
    if local is None:
        return ""
    if local.later is not None and max(new, default=0) <= local.first:
        return f"decode_schedule: no reply is longer than its first {local.first} tokens"
    if local.rounding is None:
        return ""
    least = local.rounding.recent + local.rounding.align
    for scenario, sample in asked:
        more = scenario.max_new_tokens if scenario.mode == "generate" else 1
        if len(asker.prompter.prompt(sample.prompt)) + more > least:
            return ""
    return f"kv_bits: no prompt with its reply is longer than {least} tokens: nothing is rounded"


def measure_latency(
    task: Task, benchmarks: Sequence[Benchmark], prompts: int, report: Report
) -> None:
    """Latencies of `prompts` prompts and their median, into the file `task.latency`; `rows` are the
    prompts' places among all samples.
    """
    report("measuring the latency", 0, prompts)
    waiting = partial(report, "waiting for another process that measures a latency", 0, 1)
    with store.lease(task.latency.parent, "", waiting):
        if not task.latency.exists():
            with engines.opened(store.intact(task.checkpoint), task.engine) as engine:
                seconds = latency(asker(engine, task.template), benchmarks, prompts)
            found = {
                "latency_ms": 1000 * float(np.median(list(seconds.values()))),
                "rows": list(seconds),
                "seconds": list(seconds.values()),
            }
            store.write_record(task.latency, found)
    report("measuring the latency", prompts, prompts)


def _predict(asker: Asker, task: Task, benchmarks: Sequence[Benchmark], report: Report) -> None:
    total, done = sum(len(benchmark.samples) for benchmark in benchmarks), 0
    for benchmark in benchmarks:

        def progress(items: int, _total: int, before: int = done) -> None:
            report(f"{EVALUATING}{task.label}", before + items, total)

        path = task.outputs[benchmark.name]
        metadata = {
            "label": task.label,
            "source": f"{benchmark.source} {benchmark.version}",
            "data": json.dumps(benchmark.data),
            "engine": json.dumps(asdict(task.engine)),
            "form": asker.engine.form,
            "evaluate_version": str(EVALUATE_VERSION),
            "dropped_demonstrations": str(benchmark.dropped),
        }
        answers = evaluate(asker, benchmark, progress)
        replies = [reply for reply in answers["reply"].to_pylist() if reply]
        metadata["thoughts"] = str(sum(without_thoughts(reply) != reply for reply in replies))
        predictions.write(answers, path, metadata)
        done += len(benchmark.samples)
        report(f"{EVALUATING}{task.label}", done, total)


def fitted(asker: Asker, benchmark: Benchmark) -> Benchmark:
    """Prompts within the model's context; `dropped` counts the demonstrations left out for it.

    ValueError: a prompt is too long without any, or `engine.too_long` is error.
    """
    samples = tuple(_fitted(asker, benchmark.scenarios[s.scenario], s) for s in benchmark.samples)
    pairs = zip(benchmark.samples, samples, strict=True)
    dropped = sum(len(before.demos) - len(after.demos) for before, after in pairs)
    return replace(benchmark, samples=samples, dropped=dropped)


def _fitted(asker: Asker, scenario: Scenario, sample: Sample) -> Sample:
    context = asker.engine.context
    if not context:
        return sample

    def fits(prompt: Prompt) -> bool:
        if scenario.mode == "generate":
            return len(asker.prompter.prompt(prompt)) + scenario.max_new_tokens <= context
        choices = _choices(asker, scenario, sample, prompt)
        return len(choices.prompt) + max(map(len, choices.labels)) - 1 <= context

    return fit(sample, fits, drop=asker.engine.settings.too_long == "drop")


def evaluate(asker: Asker, benchmark: Benchmark, progress: Callable[[int, int], None]) -> pa.Table:
    """The predictions table of one benchmark, rows in the order of its samples."""
    total = len(benchmark.samples)
    rows: dict[str, dict[str, object]] = {}
    for mode, answer in (("choice", _choose), ("generate", _reply)):
        samples = [s for s in benchmark.samples if benchmark.scenarios[s.scenario].mode == mode]
        if samples:
            before = len(rows)
            started = perf_counter()

            def ahead(done: int, _total: int, before: int = before) -> None:
                progress(min(before + done, total), total)

            said = answer(asker, benchmark.scenarios, samples, ahead)
            share = (perf_counter() - started) / len(samples)
            for sample, raw in zip(samples, said, strict=True):
                rows[sample.id] = raw | {"seconds": share}
    empty = {"reply": None, "logprobs": None, "offsets": None}
    return pa.Table.from_pylist(
        [empty | _facts(benchmark.name, s) | rows[s.id] for s in benchmark.samples],
        schema=predictions.SCHEMA,
    )


def _facts(benchmark: str, sample: Sample) -> dict[str, object]:
    return {
        "benchmark": benchmark,
        "perspective": benchmark,
        "scenario": sample.scenario,
        "sample": sample.id,
        "item": sample.item,
        "cluster": sample.resampled,
        "group": sample.group,
        "gold": sample.gold,
        "n_labels": len(sample.question.labels),
        "abstain_ok": sample.abstain_ok,
    }


def _choose(
    asker: Asker,
    scenarios: Mapping[str, Scenario],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None],
) -> list[dict[str, object]]:
    """Label log-probabilities of each sample, and the offsets of its scenario's calibration."""
    asked = [_choices(asker, scenarios[s.scenario], s, s.prompt) for s in samples]
    first = {sample.scenario: sample for sample in reversed(samples)}
    probes = [
        (name, _choices(asker, scenarios[name], sample, prompt))
        for name, sample in first.items()
        for prompt in scenarios[name].calibration.get(scenarios[name].calibrate, ())
    ]
    asked += [choices for _, choices in probes]
    logprobs = engines.score(
        asker.engine, [c.prompt for c in asked], [c.labels for c in asked], progress
    )
    probed: dict[str, list[list[float]]] = {}
    for (name, _), row in zip(probes, logprobs[len(samples) :], strict=True):
        probed.setdefault(name, []).append(row)
    offsets = {name: np.mean(rows, axis=0).tolist() for name, rows in probed.items()}
    return [
        {"logprobs": row, "offsets": offsets.get(sample.scenario)}
        for sample, row in zip(samples, logprobs[: len(samples)], strict=True)
    ]


def _choices(asker: Asker, scenario: Scenario, sample: Sample, prompt: Prompt) -> Choices:
    """The sample's labels behind a prompt."""
    words = [*sample.question.labels, *sample.question.abstain[:1]]
    return asker.prompter.choices(prompt, [scenario.lead + word for word in words])


def _reply(
    asker: Asker,
    scenarios: Mapping[str, Scenario],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None],
) -> list[dict[str, object]]:
    """Greedy replies, cut before the scenario's stop text."""
    prompts = [asker.prompter.prompt(sample.prompt) for sample in samples]
    limits = [scenarios[sample.scenario].max_new_tokens for sample in samples]
    replies: list[dict[str, object]] = []
    generated = engines.generate(asker.engine, prompts, limits, progress)
    for sample, ids in zip(samples, generated, strict=True):
        reply = str(asker.engine.tokenizer.decode(ids, skip_special_tokens=True))
        stop = scenarios[sample.scenario].stop
        replies.append({"reply": reply.split(stop)[0] if stop else reply})
    return replies


def latency(asker: Asker, benchmarks: Sequence[Benchmark], prompts: int) -> dict[int, float]:
    """Seconds from prompt to label, batch 1, of seeded prompts spread over the benchmarks, by their
    places among all samples.
    """
    samples = [(b.scenarios[s.scenario], s) for b in benchmarks for s in b.samples]
    drawn = random.Random(LATENCY_SEED).sample(range(len(samples)), min(prompts, len(samples)))
    alike: dict[int, list[int]] = {}  # by new tokens, 0 = choice
    for row in drawn:
        scenario, sample = samples[row]
        samples[row] = scenario, _fitted(asker, scenario, sample)
        new_tokens = scenario.max_new_tokens if scenario.mode == "generate" else 0
        alike.setdefault(new_tokens, []).append(row)
    seconds: dict[int, float] = {}
    for new_tokens, rows in alike.items():
        if new_tokens:
            ids = [asker.prompter.prompt(samples[row][1].prompt) for row in rows]
            timed = engines.latency(asker.engine, ids, None, new_tokens)
        else:
            asked = [_choices(asker, *samples[row], samples[row][1].prompt) for row in rows]
            timed = engines.latency(
                asker.engine, [c.prompt for c in asked], [c.labels for c in asked]
            )
        seconds |= zip(rows, timed, strict=True)
    return seconds
