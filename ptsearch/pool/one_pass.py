"""The pass over the base model that solves a pool: each layer, for every variant."""

import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors, tensors_of
from ptsearch.models.coded import Coded
from ptsearch.models.layers import layers_of, linears_of, skeleton
from ptsearch.pool import calibration as calibrations
from ptsearch.pool import fisher, layerwise, writer
from ptsearch.pool.calibration import Calibration
from ptsearch.pool.layerwise import Samples
from ptsearch.pool.variant_build import UNSOLVABLE, LayerNotes, VariantBuild, alone
from ptsearch.quantize import METHODS, awq, grid, solve
from ptsearch.quantize.layer import Layer, LayerResult, ScalingSite
from ptsearch.shared import BUILDING, Report
from ptsearch.variant import Variant


class Packed(NamedTuple):
    """A variant's part of a layer, and the tensors to store."""

    result: LayerResult
    tensors: dict[str, Tensor]


def one_pass(
    base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration, report: Report
) -> None:
    """Solve all variants and write their checkpoints; layers that have files are done.

    All are solved behind the dense model's layers, or there is one sequential variant.
    """
    model = skeleton(base.path, base.trust_remote_code)
    linears = linears_of(model)
    tensors = tensors_of(model, base.path)
    for build in builds:
        build.method.check_available()
        build.names = tensors.names
    samples = draw(base, builds, calibration)
    root, layers = layers_of(model)
    first = _first_missing(builds, len(layers))
    if first < len(layers):
        sites = awq.ScalingSites()
        scaled = any("sites" in build.method.needs for build in builds)
        sequential = builds[0].sequential
        done = {f"{root}.{i}.": i + 1 for i in range(first)} if sequential else {}
        _write_around(tensors, root, builds)
        with _gradients(base, builds, samples, report) as gradients, _threads() as pool:

            def read(prefix: str) -> dict[str, Tensor]:
                if prefix in done:
                    return builds[0].dense_layer(done[prefix])
                return tensors.under(prefix)

            def visit(layer: Layer) -> dict[str, Tensor]:
                report(BUILDING, layer.number, len(layers))
                layer = layer._replace(fisher=fisher.read(gradients, layer.number))
                return _solve_layer(layer, builds, sites.of(layer) if scaled else [], pool)

            layerwise.walk(read, model, samples, visit, first, sequential)
        report(BUILDING, len(layers), len(layers))
    for build in builds:
        if not build.failure:
            with alone(build):
                build.write_config(base, dense_linears(model, linears))


def _first_missing(builds: Sequence[VariantBuild], layers: int) -> int:
    """The first layer that a variant has no file of."""
    whole = [i for i in range(layers) if all(build.file(i + 1).exists() for build in builds)]
    return next((i for i in range(layers) if i not in whole), layers)


def _write_around(tensors: Tensors, root: str, builds: Sequence[VariantBuild]) -> None:
    """File 0 of each variant: the tensors outside the decoder layers."""
    pending = [build for build in builds if not build.file(0).exists()]
    if pending:
        around = tensors.read([n for n in tensors.file_of if not n.startswith(f"{root}.")])
        for build in pending:
            with alone(build):
                build.write(0, around, LayerNotes())


def draw(base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration) -> Samples:
    """The token chunks that any seed draws; notes each variant's indices."""
    tokenizer = loading.load_tokenizer(base.path, base.trust_remote_code)
    how = (calibration.length, calibration.rendering)
    chunks = calibrations.chunks(tokenizer, calibration.fitted, *how)
    drawn = {}
    for build in builds:
        if not build.method.calibrated:
            continue
        if build.variant.calibration != calibration.identity:
            raise ValueError(f"{build.variant.label} names another calibration than the one given")
        seed = build.variant.seed
        drawn[seed] = calibrations.draw(len(chunks), calibration.samples, seed)
        build.calibration_indices = drawn[seed]
    used = sorted({index for indices in drawn.values() for index in indices}) or [0]
    row = {index: position for position, index in enumerate(used)}
    seeds = {seed: [row[i] for i in indices] for seed, indices in drawn.items()}
    return Samples(chunks[used], seeds)


def check_groups(variants: Iterable[Variant], inputs: Mapping[str, int]) -> None:
    """ValueError: a variant's group_size does not divide the inputs of a linear, by its name."""
    for variant in variants:
        for name, width in inputs.items() if not METHODS[variant.method].dense else ():
            try:
                grid.columns(width, variant.group_size)
            except ValueError as error:
                raise ValueError(f"{variant.label}: {error} ({name})") from None


def dense_linears(model: nn.Module, linears: Collection[str]) -> list[str]:
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name not in linears
    ]


@contextmanager
def _gradients(
    base: BaseModel, builds: Sequence[VariantBuild], samples: Samples, report: Report
) -> Iterator[dict[int, Path]]:
    """Seed -> folder of the Fisher diagonals, for the methods that need them; a pass of its own."""
    needing = [build for build in builds if "gradients" in build.method.needs]
    folders = {}
    for seed in sorted({build.variant.seed for build in needing}):
        started = time.process_time()
        folders[seed] = needing[0].scratch / f"gradients-{seed}"
        folders[seed].mkdir(exist_ok=True)
        fisher.measure(base, samples.tokens[list(samples.seeds[seed])], folders[seed], report)
        for build in needing:
            if build.variant.seed == seed:
                build.gradient_cpu_seconds = time.process_time() - started
    yield folders
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)


def _threads() -> ThreadPoolExecutor:
    """As many threads as torch uses, each with single-threaded products: jobs share nothing."""
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "solve", _one_thread)
    list(pool.map(time.sleep, [0.01] * count))  # each has started and set its own number
    torch.set_num_threads(count)  # theirs was also taken for ours
    return pool


def _one_thread() -> None:
    """For products of this thread."""
    torch.get_num_threads()  # the first use takes what was set last, by whatever thread
    torch.set_num_threads(1)


def _solve_layer(
    layer: Layer,
    builds: Sequence[VariantBuild],
    sites: list[ScalingSite],
    pool: ThreadPoolExecutor,
) -> dict[str, Tensor]:
    """Solve one decoder layer for every variant and write it, each as soon as it is complete.

    Returns what replaces the layer's tensors in the pass, where that is one sequential variant's.
    """
    changed: dict[str, Tensor] = {}
    pending = {
        build.variant.id: build
        for build in builds
        if not build.failure and not build.file(layer.number + 1).exists()
    }
    parts: dict[str, list[Packed]] = {id_: [] for id_ in pending}
    jobs = solve.jobs(layer, [build.variant for build in pending.values()], sites)
    for job, solved in pool.map(_packed, jobs):
        for index, variant in enumerate(job.variants):
            build = pending[variant.id]
            if build.failure:
                continue
            with alone(build):
                if isinstance(solved, Exception):
                    raise solved
                parts[variant.id].append(solved[index])
                if build.sequential:
                    changed |= solved[index].result.replaced
                    quantized = solved[index].result.quantized
                    changed |= {f"{name}.weight": q.dense() for name, q in quantized.items()}
                if build.method.solve_layer or len(parts[variant.id]) == len(layer.inputs):
                    _write_layer(build, layer, parts.pop(variant.id))
    return changed


def _packed(job: solve.Job) -> tuple[solve.Job, list[Packed] | Exception]:
    """What a job gives for each of its variants, or why it could not be done."""
    packed = []
    try:
        for variant, result in job.solve():
            tensors = dict(result.replaced)
            for name, linear in result.quantized.items():
                tensors |= writer.tensors(name, linear, variant)
            packed.append(Packed(result, tensors))
    except UNSOLVABLE as error:
        return job, error
    return job, packed


def _write_layer(build: VariantBuild, layer: Layer, parts: Sequence[Packed]) -> None:
    """The file of a layer: what was solved, and the layer's other tensors as they are."""
    notes, tensors = LayerNotes(), dict(layer.stored)
    for result, packed in parts:
        for name, linear in result.quantized.items():
            del tensors[f"{name}.weight"]
            if linear.damp > build.variant.damp_percent:
                notes.damp_raised[name] = linear.damp
            if isinstance(linear, Coded):
                notes.entries[name] = linear.entry()
        tensors |= packed
        notes.cpu_seconds += result.cpu_seconds
        notes.runtime |= result.runtime
    if build.calibration_indices:
        slots = range(len(layer.inputs))
        unseen = [slot for slot in slots if not layer.seen(slot, build.variant.seed)]
        notes.rounded_to_nearest = [name for slot in unseen for name in layer.inputs[slot]]
    build.write(layer.number + 1, tensors, notes)
