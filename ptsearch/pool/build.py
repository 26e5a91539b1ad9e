"""Builds a pool: one pass over the base model solves all of it, then each variant is checked.

A variant becomes a folder `variants/<id>` with a compressed-tensors checkpoint and `meta.json`,
whole or not at all. The dense model and ready-made checkpoints get a folder with `meta.json` only.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ptsearch import store
from ptsearch.aliases import Report
from ptsearch.engine import kv_attention, kv_cache
from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors
from ptsearch.models.layers import linears_of, skeleton
from ptsearch.pool import backends, one_pass, resume, verify, writer
from ptsearch.pool.calibration import Calibration
from ptsearch.pool.verify import Work
from ptsearch.quantize import METHODS
from ptsearch.quantize.grid import Quantized
from ptsearch.variant import SEQUENTIAL, Variant

CACHE_SAMPLES = 4  # of the calibration samples, for keys and values
CACHE_TOKENS = 1024  # of them that are kept


def folder_of(store_root: Path, variant: Variant) -> Path:
    return store_root / "variants" / variant.id


def build_pool(
    base: BaseModel,
    variants: Sequence[Variant],
    calibration: Calibration,
    store_root: Path,
    report: Report,
    max_perplexity_ratio: float = 20.0,
) -> None:
    """Build what is not there yet, the dense model's folder included.

    What was interrupted goes on where it stopped. One layer at a time is in memory, where there is
    no room for the whole model. ValueError: a group_size that does not divide, too little
    calibration text; after all others were built, variants that cannot be solved or have no room on
    the disk.
    """
    dense = Variant(base.name, base.revision)
    missing = [
        variant
        for variant in {v.id: v for v in (dense, *_with_phases(variants))}.values()
        if not store.is_whole(folder_of(store_root, variant))
    ]
    if not missing:
        return
    asked = [variant.id for variant in (dense, *variants)]
    with resume.unfinished(store_root, asked) as kept, ExitStack() as stack:
        works = []
        for variant in missing:
            own = stack.enter_context(ExitStack())
            place = store.new_folder(folder_of(store_root, variant), kept / variant.id)
            works.append(Work(variant, own.enter_context(place), own.close))
        started = time.perf_counter()
        made = [work for work in works if _has_weights(work.variant)]
        by_library = [work for work in made if work.variant.backend != "native"]
        if by_library:
            _with_libraries(base, by_library, calibration, report)
        solved = [work for work in made if work.variant.backend == "native"]
        together = [work for work in solved if not _is_sequential(work.variant)]
        alone = [[work] for work in solved if _is_sequential(work.variant)]
        for works_of_pass in [together, *alone] if together else alone:
            one_pass.one_pass(base, works_of_pass, calibration, report, kept)
        fitted = [work for work in works if "kv" in METHODS[work.variant.method].needs]
        if fitted := [work for work in fitted if not work.variant.decode_schedule]:
            _fit_caches(base, fitted, calibration, report)
        seconds = time.perf_counter() - started
        for done, work in enumerate(works):
            report("checking the built variants", done, len(works))
            if work.failure:
                continue
            with one_pass.alone(work):
                if work.variant.decode_schedule:
                    parts = [folder_of(store_root, v) for v in work.variant.phases()[1:]]
                    verify.join_phases(work, parts)
                else:
                    reference = folder_of(store_root, dense)
                    ratio = max_perplexity_ratio
                    verify.check(base, work, calibration, reference, ratio, seconds)
                work.finish()
        _name_failures(works)
    report("checking the built variants", len(missing), len(missing))


def _name_failures(works: Sequence[Work]) -> None:
    """ValueError: which variants could not be built, by reason."""
    labels: dict[str, list[str]] = {}
    for work in works:
        if work.failure:
            labels.setdefault(work.failure, []).append(work.variant.label)
    if labels:
        reasons = [f"{', '.join(those)}: {reason}" for reason, those in labels.items()]
        built = sum(not work.failure for work in works)
        raise ValueError(" ".join([*reasons, f"(the other {built} variants are built)"]))


def _with_phases(variants: Sequence[Variant]) -> Iterator[Variant]:
    """The variants, and before one whose replies have two phases those that write them."""
    for variant in variants:
        if variant.decode_schedule:
            yield from variant.phases()[1:]
        yield variant


def _is_sequential(variant: Variant) -> bool:
    """Whether each layer is solved behind layers that are quantized already: one variant a pass."""
    return SEQUENTIAL in variant.method_args


def _has_weights(variant: Variant) -> bool:
    return not METHODS[variant.method].dense and not variant.decode_schedule


def _with_libraries(
    base: BaseModel, works: Sequence[Work], calibration: Calibration, report: Report
) -> None:
    """Build variants of other backends, one after the other."""
    for work in works:
        backends.check_available(work.variant)
    model = skeleton(base)
    linears = linears_of(model)
    one_pass.check_groups(works, linears)
    tokens, seeds = one_pass.draw(base, works, calibration)
    for done, work in enumerate(works):
        report(f"building with {work.variant.backend}", done, len(works))
        samples = tokens[seeds.get(work.variant.seed, [])]
        started = time.process_time()
        if work.variant.backend == "llmcompressor":
            backends.llmcompressor(base, work.variant, samples, work.folder)
        else:
            _write_whole(base, work, backends.gptqmodel(base, work.variant, samples))
            one_pass.write_config(base, work, one_pass.dense_linears(model, linears))
        work.cpu_seconds = time.process_time() - started


def _write_whole(base: BaseModel, work: Work, quantized: Mapping[str, Quantized]) -> None:
    """A checkpoint of which every quantized linear is at hand."""
    tensors = Tensors(base.path)
    room = writer.header_room(tensors.file_of, quantized)
    with writer.Writer(work.folder / writer.WEIGHTS, room) as work.writer:
        for name in tensors.file_of:
            linear = name.removesuffix(".weight")
            stored = tensors.read([name])
            if linear in quantized:
                stored = writer.tensors(linear, quantized[linear], work.variant)
            for key, tensor in stored.items():
                work.writer.add(key, tensor)


def _fit_caches(
    base: BaseModel, works: Sequence[Work], calibration: Calibration, report: Report
) -> None:
    """What rounds keys and values, from a few samples run through the whole dense model and back.

    The one pass beside the pool's own: it needs the gradients of the model's loss (KVQuant).
    """
    tokens, seeds = one_pass.draw(base, works, calibration)
    kinds = dict.fromkeys((work.variant.seed, work.variant.method) for work in works)
    for done, (seed, method) in enumerate(kinds):
        report("recording keys and values", done, len(kinds))
        model, _ = loading.load(base.path)
        model.requires_grad_(False)
        chunks = tokens[seeds[seed][:CACHE_SAMPLES]]
        recorded = kv_attention.record(model, chunks, method == "kvquant", CACHE_TOKENS)
        for work in works:
            if (work.variant.seed, work.variant.method) == (seed, method):
                started = time.process_time()
                for layer, seen in recorded.items():
                    found = kv_cache.fit(method, work.variant.kv_bits, seen, seed)
                    work.runtime |= {f"{layer}.{name}": value for name, value in found.items()}
                work.cpu_seconds += time.process_time() - started
