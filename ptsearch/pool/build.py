"""Builds a pool: one pass over the base model solves all of it, then each variant is checked.

A variant becomes a folder `variants/<id>` with a compressed-tensors checkpoint and `meta.json`,
whole or not at all. The dense model and ready-made checkpoints get a folder with `meta.json` only.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ptsearch import store
from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors, tensors_of
from ptsearch.models.layers import linears_of, skeleton
from ptsearch.pool import backends, gguf_build, kv_calibration, one_pass, verify, writer
from ptsearch.pool.calibration import Calibration
from ptsearch.pool.variant_build import (
    NO_ROOM,
    LayerNotes,
    VariantBuild,
    alone,
    finish,
    leased,
    sweep,
)
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.kv import fit
from ptsearch.shared import Report
from ptsearch.variant import Variant

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
) -> dict[str, str]:
    """Build what is not there yet, the dense model's folder included. Returns the ids of variants
    that cannot be solved, and why.

    An interrupted build goes on where it stopped; what another process builds is waited for, as
    long as that lives. One decoder layer is in memory at a time, where the whole model does not
    fit. ValueError: a group_size that does not divide, too little calibration text; after all
    others were built, variants that have no room on the disk.
    """
    sweep(store_root)
    dense = Variant(base.name, base.revision)
    wanted = {v.id: v for v in (dense, *_with_phases(variants))}.values()
    how = verify.Check(base, calibration, folder_of(store_root, dense), max_perplexity_ratio, 0.0)
    tried: dict[str, VariantBuild] = {}

    def build_each(stage: Sequence[Variant]) -> None:
        while missing := [
            v for v in stage if v.id not in tried and not store.is_whole(folder_of(store_root, v))
        ]:
            waiting = partial(report, "waiting for another process that builds", 0, len(missing))
            with leased(store_root, missing, waiting) as builds:
                started = time.perf_counter()
                _solve(base, builds, calibration, report)
                timed = how._replace(seconds=time.perf_counter() - started)
                if dense not in stage:
                    build_each([dense])  # with which they are compared
                _check(builds, timed, store_root, report)
            tried.update({build.variant.id: build for build in builds})

    build_each([v for v in wanted if not v.decode_schedule and v != dense])
    build_each([dense])
    build_each([v for v in wanted if v.decode_schedule])  # of those before
    if tried:
        _check_room(list(tried.values()))
        report("checking the built variants", len(tried), len(tried))
    return {id_: build.failure for id_, build in tried.items() if build.failure}


def _check(
    builds: Sequence[VariantBuild], how: verify.Check, store_root: Path, report: Report
) -> None:
    """Read the variants back and describe them; those that can be become whole."""
    for done, build in enumerate(builds):
        report("checking the built variants", done, len(builds))
        if build.failure:
            continue
        with alone(build):
            if build.variant.decode_schedule:
                parts = [folder_of(store_root, v) for v in build.variant.phases()[1:]]
                meta = verify.joined_meta(build, parts)
            else:
                build.write_runtime()
                meta = verify.check(build, how)
            store.write_meta(build.folder, meta)
            finish(build, folder_of(store_root, build.variant))


def _solve(
    base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration, report: Report
) -> None:
    """Write the checkpoints of all variants that have weights of their own, and fit caches."""
    solved = [build for build in builds if _has_weights(build)]
    by_library = [build for build in solved if build.variant.backend != "native"]
    if by_library:
        _with_libraries(base, by_library, calibration, report)
    if by_llama := [build for build in solved if build.method.storage == "gguf"]:
        gguf_build.build(base, by_llama, calibration, report)
    for build in builds:
        if dict(build.variant.method_args).get("path", "").endswith(".gguf"):
            gguf_build.link(base, build)
    ours = [build for build in solved if build not in by_llama]
    native = [build for build in ours if build.variant.backend == "native"]
    together = [build for build in native if not build.sequential]
    passes = [together] if together else []
    for builds_of_pass in [*passes, *([build] for build in native if build.sequential)]:
        one_pass.one_pass(base, builds_of_pass, calibration, report)
    fitted = [build for build in builds if "kv" in build.method.needs]
    if fitted := [build for build in fitted if not build.variant.decode_schedule]:
        _fit_caches(base, fitted, calibration, report)


def _check_room(builds: Sequence[VariantBuild]) -> None:
    """FullDiskError: there was no room for some of them."""
    if crowded := [build.variant.label for build in builds if build.failure == NO_ROOM]:
        built = sum(not build.failure for build in builds)
        raise store.FullDiskError(
            f"{', '.join(crowded)}: {NO_ROOM} (the other {built} variants are built)"
        )


def _with_phases(variants: Sequence[Variant]) -> Iterator[Variant]:
    """The variants, and before one whose replies have two phases those that write them."""
    for variant in variants:
        if variant.decode_schedule:
            yield from variant.phases()[1:]
        yield variant


def _has_weights(build: VariantBuild) -> bool:
    return not build.method.dense and not build.variant.decode_schedule


def _with_libraries(
    base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration, report: Report
) -> None:
    """Build variants of other backends, one after the other."""
    for build in builds:
        backends.check_available(build.variant)
    model = skeleton(base.path, base.trust_remote_code)
    linears = linears_of(model)
    samples = one_pass.draw(base, builds, calibration)
    for done, build in enumerate(builds):
        report(f"building with {build.variant.backend}", done, len(builds))
        tokens = samples.tokens[samples.seeds.get(build.variant.seed, [])]
        started = time.process_time()
        if build.variant.backend == "llmcompressor":
            backends.llmcompressor(base, build.variant, tokens, build.folder)
        else:
            held = tensors_of(model, base.path)
            build.names = held.names
            _write_whole(held, build, backends.gptqmodel(base, build.variant, tokens))
            build.write_config(base, one_pass.dense_linears(model, linears))
        build.cpu_seconds = time.process_time() - started


def _write_whole(held: Tensors, build: VariantBuild, quantized: Mapping[str, Quantized]) -> None:
    """A checkpoint whose quantized linears are all in memory; `held`: of the base model."""
    tensors = held.under("")
    for name, linear in quantized.items():
        del tensors[f"{name}.weight"]
        tensors |= writer.tensors(name, linear, build.variant)
    build.write(0, tensors, LayerNotes())


def _fit_caches(
    base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration, report: Report
) -> None:
    """Fit how keys and values are rounded, on a few samples run through the whole dense model.

    A pass of its own: KVQuant needs the gradients of the model's loss.
    """
    samples = one_pass.draw(base, builds, calibration)
    kinds = dict.fromkeys((build.variant.seed, build.variant.method) for build in builds)
    for done, (seed, method) in enumerate(kinds):
        report("recording keys and values", done, len(kinds))
        model, _ = loading.load(base.path, loading.dtype_name(loading.compute_dtype()))
        model.requires_grad_(False)
        chunks = samples.tokens[samples.seeds[seed][:CACHE_SAMPLES]]
        recorded = kv_calibration.record(model, chunks, method == "kvquant", CACHE_TOKENS)
        for build in builds:
            if (build.variant.seed, build.variant.method) == (seed, method):
                started = time.process_time()
                for layer, seen in recorded.items():
                    tensors = fit(method, build.variant.kv_bits, seen, seed)
                    build.runtime |= {f"{layer}.{name}": value for name, value in tensors.items()}
                build.cpu_seconds += time.process_time() - started
