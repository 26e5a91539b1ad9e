"""The narrow waist: answers and cost of every variant asked for, built and evaluated on first use.

Above it, models and hours, in worker processes; below it, arrays and milliseconds.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptsearch import store
from ptsearch.benchmarks import Benchmark
from ptsearch.benchmarks.parsing import UNUSABLE
from ptsearch.benchmarks.registry import RULES
from ptsearch.config import LOCAL, Config
from ptsearch.engine import targets
from ptsearch.evaluation import (
    distributions,
    early_check,
    evaluate,
    llm_judge,
    predictions,
    preflight,
)
from ptsearch.evaluation.workers import Bounds, Pool, WorkerError, each
from ptsearch.models import base_model, checkpoint
from ptsearch.models.architecture import attention_sizes
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build, calibration, one_pass
from ptsearch.scoring import scores
from ptsearch.scoring.closeness import Near
from ptsearch.scoring.cost import VariantCost, kv_bytes
from ptsearch.shared import VARIANTS, AnswerCodes, Report
from ptsearch.variant import Variant, expand_pool, unique_labels
from ptsearch.voting import VOTES

DENSE = "none"
SILENCE, BYTES_PER_SECOND = 1800.0, 4e6  # seconds without progress, and more for a large model
Result = TypeVar("Result")


class Timed(NamedTuple):
    """The prompts whose latency was measured."""

    rows: list[int]  # their places among all samples
    seconds: list[float]


@dataclass(frozen=True)
class Entry:
    """What is known of one evaluated variant."""

    variant: Variant
    codes: AnswerCodes  # (samples,) in the order of the benchmarks
    cost: VariantCost
    timed: Timed | None = None
    reason: str = ""  # why it may not vote; "" = it may
    left_out: bool = False  # nothing more is asked of it
    judged: NDArray[np.bool_] | None = None  # (samples,) read by a judge; None = no judge is asked
    logprobs: NDArray[np.float64] | None = None  # (samples, labels), for the soft vote alone


@dataclass
class Table:
    """Variants by label, and the entries of those evaluated so far."""

    config: Config
    base: BaseModel
    variants: dict[str, Variant]  # the pool in its order; the dense model stands beside it
    benchmarks: Sequence[Benchmark]
    workers: Pool
    report: Report
    entries: dict[str, Entry] = field(default_factory=dict)
    reader: llm_judge.Reader | None = None  # who reads what the rules cannot
    model: preflight.ModelCheck = field(default_factory=preflight.ModelCheck)
    near: dict[str, Near] = field(default_factory=dict)  # what `closeness` has computed

    def ensure(self, labels: Iterable[str]) -> None:
        """Build and evaluate those of `labels` that have no entry yet."""
        missing = [label for label in dict.fromkeys(labels) if label not in self.entries]
        if not missing:
            return
        wanted = dict.fromkeys([DENSE, *missing])  # sizes are told from the dense model's
        self._build_to_run(list(wanted))
        missing = [label for label in missing if label not in self.entries]
        metas = {label: self.meta(label) for label in missing}
        sound = [label for label in missing if not metas[label].degenerate]
        tasks = {label: self._task(label) for label in sound}
        broken = self._predict({label: task for label, task in tasks.items() if task.outputs})
        self._time({label: task for label, task in tasks.items() if label not in broken})
        missing = [label for label in missing if label not in self.entries]
        read = {x: self._read(x) for x in missing if x in tasks and x not in broken}
        if self.reader:
            left = (unread.ask for _, found in read.values() for unread in found)
            if asks := llm_judge.unsettled(self.reader, left):
                job = partial(llm_judge.settle, self.reader, asks)
                self.workers.call(job, self.report, self._bounds())
        for label in missing:
            if label in read:
                self.entries[label] = self._entry(label, *read[label])
            else:
                reason = broken.get(label) or _degenerate(metas[label])
                self.entries[label] = self._silent(label, self._cost(label, math.nan), reason)
        self.report(VARIANTS, len(self.entries), len(self.variants) + 1)

    def build(self, labels: Iterable[str]) -> None:
        """Build what is not in the cache: the whole pool or only `labels`, by `pool.build`.
        Variants that cannot be built are left out.
        """
        unbuilt = [label for label in labels if not store.is_whole(self.folder(label))]
        if not unbuilt:
            return
        if self.config.pool.build == "all" and unbuilt != [DENSE]:
            left_out = self.left_out()
            everything = [DENSE, *(label for label in self.variants if label not in left_out)]
            unbuilt = [label for label in everything if not store.is_whole(self.folder(label))]
        by_seed = sorted(unbuilt, key=lambda label: self.variant(label).seed)
        count = min(self.workers.count, len(by_seed))  # each walks through the model by itself
        cuts = [len(by_seed) * part // count for part in range(count + 1)]
        parts = [by_seed[start:stop] for start, stop in pairwise(cuts)]
        each(self.workers, partial(self._build, small=False), parts, self.report)

    def _build_to_run(self, labels: Sequence[str]) -> None:
        """The same where they are to answer: hours are not spent on a model that cannot."""
        if not all(store.is_whole(self.folder(label)) for label in labels):
            job = partial(evaluate.check_runs, self.base, self.config.engine)
            self.workers.call(job, self.report, self._bounds())
        self.build(labels)

    def _build(self, labels: Sequence[str], report: Report, small: bool) -> None:
        """In one pass. If that is killed or hangs, it goes on with a smaller budget; if it is so
        again, each half goes on by itself, down to the variant that it is because of.
        """
        job = partial(
            build.build_pool,
            self.base,
            [self.variant(label) for label in labels],
            calibration.read(self.config.calibration),
            Path(self.config.cache_dir),
            max_perplexity_ratio=self.config.pool.max_perplexity_ratio,
        )
        try:
            failures = self.workers.call(job, report, self._bounds(small))
        except WorkerError as error:
            unbuilt = [label for label in labels if not store.is_whole(self.folder(label))]
            if len(unbuilt) == 1 and small:
                self._fail(unbuilt[0], f"could not be built: {error}")
            elif unbuilt:
                middle = len(unbuilt) // 2 if small else 0
                for part in (unbuilt[:middle], unbuilt[middle:]):
                    if part:
                        self._build(part, report, small=True)
        else:
            for label in labels:
                if reason := failures.get(self.variant(label).id):
                    self._fail(label, f"could not be built: {reason}")

    def _predict(self, tasks: Mapping[str, evaluate.Task]) -> dict[str, str]:
        """Evaluate variants; which of them may not vote, and why."""

        def run(label: str, report: Report) -> str | None:
            whole, small = (
                partial(evaluate.run, task, self.benchmarks)
                for task in (tasks[label], evaluate.smaller(tasks[label]))
            )
            return self._twice(label, whole, small, report)

        reasons = each(self.workers, run, list(tasks), self.report)
        return {label: why for label, why in zip(tasks, reasons, strict=True) if why}

    def _twice(
        self,
        label: str,
        job: Callable[[Report], Result],
        smaller: Callable[[Report], Result],
        report: Report,
    ) -> Result | None:
        """If its worker is killed or hangs, once more with a smaller budget; then the variant is
        left out (None).
        """
        try:
            return self.workers.call(job, report, self._bounds())
        except WorkerError:
            try:
                return self.workers.call(smaller, report, self._bounds(small=True))
            except WorkerError as error:
                self._fail(label, f"could not be evaluated: {error}")
        return None

    def _fail(self, label: str, reason: str) -> None:
        """The study goes on without it. WorkerError: it is the dense model."""
        if label == DENSE:
            raise WorkerError(f"{self.base.name} dense {reason}")
        self.leave_out(label, reason)

    def _bounds(self, small: bool = False) -> Bounds:
        """Of a call that works on the model."""
        asked, files = self.config.compute.deadline, self.base.path.glob("*.safetensors")
        size = sum(path.stat().st_size for path in files)
        return Bounds(asked or SILENCE + size / BYTES_PER_SECOND, small)

    def degenerate(self) -> list[str]:
        """Labels of evaluated variants that may not vote."""
        return [label for label, entry in self.entries.items() if entry.reason]

    def voters(self) -> list[str]:
        """The variants that may vote, in the pool's order. ValueError: every one is degenerate."""
        degenerate = self.degenerate()
        sound = [label for label in self.variants if label not in degenerate]
        if self.variants and not sound:
            if failed := self.left_out():
                reasons = (f"{label} {reason}" for label, reason in failed.items())
                raise ValueError(f"no variant of the pool may vote: {'; '.join(reasons)}")
            raise ValueError(
                f"every variant of the pool is degenerate: {', '.join(degenerate)} (weights that "
                "are not finite, or a perplexity beyond pool.max_perplexity_ratio="
                f"{self.config.pool.max_perplexity_ratio:g} x dense): give pool.variants more bits"
            )
        return sound

    def leave_out(self, label: str, reason: str) -> None:
        """Nothing more is asked of a variant: it does not vote, whatever it has answered."""
        entry = self._silent(label, VariantCost({}, 0, math.nan), reason)
        self.entries[label] = replace(entry, left_out=True)

    def left_out(self) -> dict[str, str]:
        """Label -> why, of the variants that nothing more is asked of."""
        return {label: entry.reason for label, entry in self.entries.items() if entry.left_out}

    def variant(self, label: str) -> Variant:
        if label == DENSE:
            return Variant(self.base.name, self.base.revision)
        if label not in self.variants:
            raise ValueError(f"no variant {label!r}; the pool has {', '.join(self.variants)}")
        return self.variants[label]

    def folder(self, label: str) -> Path:
        return Path(self.config.cache_dir) / "variants" / self.variant(label).id

    def meta(self, label: str) -> store.VariantMeta:
        """What was recorded when the variant was built."""
        return store.read_meta(self.folder(label))

    def copies(self, labels: Iterable[str]) -> dict[str, str]:
        """Built variant -> an earlier one that has the same tensors and runs in the same way."""
        first: dict[object, str] = {}
        earlier = {}
        for label in labels:
            v, tensors = self.variant(label), self.meta(label).tensors.items()
            how = (v.act_bits, v.kv_bits, v.kv_window, v.decode_schedule)
            key = (*how, frozenset((name, tensor.sha256) for name, tensor in tensors))
            if (same := first.setdefault(key, label)) != label:
                earlier[label] = same
        return earlier

    def outputs(self, label: str) -> dict[str, Path]:
        """The predictions file of each benchmark."""
        folder, variant = Path(self.config.cache_dir) / "predictions", self.variant(label)
        how = self.config.engine, self.config.benchmarks.template
        keys = {b.name: evaluate.key(variant.id, b, *how) for b in self.benchmarks}
        return {name: folder / key / "answers.parquet" for name, key in keys.items()}

    def _time(self, tasks: Mapping[str, evaluate.Task]) -> None:
        """Measure the latencies that are missing, one after the other, nothing else running."""
        if not targets.measured(self.config):
            return
        prompts = self.config.latency.prompts
        for label, task in tasks.items():
            if label not in self.entries and not task.latency.exists():
                job = partial(evaluate.measure_latency, task, self.benchmarks, prompts)
                self._twice(label, job, job, self.report)

    def _latency(self, label: str) -> Path:
        """Built variants that keep weights in one form share a measurement, if nothing is rounded
        while they run. Other engines run each as it is stored.
        """
        variant, settings = self.variant(label), self.config.engine
        apart = variant.method == "path" or variant.acts_at_run_time
        form = label if apart or settings.name != "transformers" else DENSE
        names = [path.parent.name for path in self.outputs(form).values()]
        what = json.dumps(
            [names, self.config.latency.prompts, evaluate.LATENCY_VERSION]
            + ([targets.layout(variant)] if form == DENSE and settings.form == "auto" else [])
            + (["dense"] if settings.form == "dense" else [])
        )
        digest = hashlib.sha256(what.encode()).hexdigest()[:12]
        return Path(self.config.cache_dir) / "latency" / f"{self.variant(form).id}-{digest}.json"

    def _task(self, label: str) -> evaluate.Task:
        return evaluate.Task(
            label=label if label != DENSE else f"{self.base.name} dense",
            checkpoint=self.folder(label),
            outputs={n: path for n, path in self.outputs(label).items() if not path.exists()},
            latency=self._latency(label),
            engine=self.config.engine,
            template=self.config.benchmarks.template,
        )

    def changes(self, label: str) -> dict[str, predictions.Changes]:
        """What was left out of each benchmark's prompts and replies."""
        return {name: predictions.changes(path) for name, path in self.outputs(label).items()}

    def _read(self, label: str) -> tuple[AnswerCodes, list[llm_judge.Unread]]:
        """The codes of a variant's predictions under the rules, and what is left for a judge."""
        rules, outputs = RULES[self.config.benchmarks.rules], self.outputs(label)
        codes, unread, start = [], list[llm_judge.Unread](), 0
        for benchmark in self.benchmarks:
            answers = predictions.read(outputs[benchmark.name])
            codes.append(scores.answers(benchmark, answers, rules))
            if self.reader:
                unread += llm_judge.unread(benchmark, answers, codes[-1].tolist(), start)
            start += len(benchmark.samples)
        return np.concatenate(codes), unread

    def _entry(self, label: str, codes: AnswerCodes, unread: Iterable[llm_judge.Unread]) -> Entry:
        codes, judged = (
            llm_judge.decide(self.reader, codes, unread) if self.reader else (codes, None)
        )
        timed, outputs = targets.measured(self.config), self.outputs(label)
        soft = VOTES[self.config.vote.rule].needs_logprobs
        measured = store.read_record(self._latency(label)) if timed else {}
        return Entry(
            self.variant(label),
            codes,
            self._cost(label, _two_digits(measured["latency_ms"]) if measured else math.nan),
            Timed(measured["rows"], measured["seconds"]) if measured else None,
            judged=judged,
            logprobs=distributions.logprobs(self.benchmarks, outputs) if soft else None,
        )

    def _cost(self, label: str, latency_ms: float) -> VariantCost:
        meta = self.meta(label)
        sizes = attention_sizes(self.base.path, self.base.trust_remote_code)
        stored = {tensor.sha256: tensor.bytes for tensor in meta.tensors.values()}
        tensors = self._resident.tensors(label, self.folder(label), meta.tensors)
        cache = kv_bytes(sizes, self._itemsize, self.config.memory.context)
        return VariantCost(tensors, cache, latency_ms, stored)

    @property
    def _itemsize(self) -> int:
        """Bytes of a value where the members run."""
        local = self.config.cost.target == LOCAL
        return 4 if local and self.config.engine.dtype == "float32" else 2

    @cached_property
    def _resident(self) -> targets.Resident:
        ratio = self._itemsize / checkpoint.itemsize(self.base.path)
        settings = self.config.cost.target, self.config.engine.form == "auto"
        return targets.Resident(*settings, self.meta(DENSE).tensors, ratio)

    def _silent(self, label: str, cost: VariantCost, reason: str) -> Entry:
        """Without predictions: it is shown and never votes."""
        samples = sum(len(benchmark.samples) for benchmark in self.benchmarks)
        codes = np.full(samples, UNUSABLE, dtype=np.int16)
        return Entry(self.variant(label), codes, cost, reason=reason)


def open_table(
    config: Config, benchmarks: Sequence[Benchmark], workers: Pool, report: Report
) -> Table:
    """The table of a config: the base model is fetched, the pool spanned, nothing built yet."""
    early_check.check_server(config.engine)
    bounds = Bounds(config.compute.deadline)
    engine = workers.call(partial(evaluate.with_dtype, config.engine), report, bounds)
    config = targets.with_target(replace(config, engine=engine))
    cache = Path(config.cache_dir)
    base = workers.call(partial(base_model.prepare, config.model, cache), report)
    check = partial(preflight.check, base, benchmarks, engine, config.benchmarks.template)
    model = workers.call(check, report, bounds)
    pool = expand_pool(
        Variant(base.name, base.revision),
        config.pool.variants,
        {"group_size": config.pool.group_size, "backend": config.pool.backend},
        calibration.read(config.calibration).identity,
    )
    if config.pool.sequential:
        pool = [variant.sequential() for variant in pool]
    one_pass.check_groups(pool, model.inputs)
    pool += [base_model.path_variant(base, **row) for row in config.pool.paths]
    variants, reader = unique_labels(pool), llm_judge.open_reader(config)
    return Table(config, base, variants, benchmarks, workers, report, reader=reader, model=model)


def _two_digits(value: float) -> float:
    """Two significant digits: what a repeat of the measurement agrees on."""
    return float(f"{value:.2g}")


def _degenerate(meta: store.VariantMeta) -> str:
    dense = math.nan if meta.dense_perplexity is None else meta.dense_perplexity
    return f"perplexity {meta.perplexity}, dense {dense:.4g}"
