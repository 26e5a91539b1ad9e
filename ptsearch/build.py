"""Builds a pool: one pass over the base model solves all of it, then each variant is checked.

A variant becomes a folder `variants/<id>` with a compressed-tensors checkpoint and `meta.json`,
whole or not at all. The dense model and ready-made checkpoints get a folder with `meta.json` only.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ptsearch import calibration as calibrations
from ptsearch import codes, models, quantize, readback, store
from ptsearch.calibration import Calibration
from ptsearch.codes import Coded
from ptsearch.engine import rounded
from ptsearch.models import BaseModel
from ptsearch.quantize import awq, cache, checkpoint, fisher, grid, hqq, layerwise, library
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import Layer, Part
from ptsearch.readback import Work
from ptsearch.stored import Tensors
from ptsearch.variant import CALIBRATED, DENSE_WEIGHTS, SEQUENTIAL, Variant

Report = Callable[[str, int, int], None]  # what is under way, done, of how many
Packed = tuple[Variant, Part, dict[str, Tensor]]  # with the tensors to store

UNSOLVABLE = (ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
CACHE_SAMPLES = 4  # of the calibration samples, for keys and values
CACHE_TOKENS = 1024  # of them that are kept
NO_ROOM = "no space left on the disk; make room and run it again"
NOT_COPIED = {"config.json", store.MANIFEST, models.META}


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

    ValueError: a group_size that does not divide, too little calibration text, a full disk (after
    all variants that it has room for were built).
    """
    dense = Variant(base.name, base.revision)
    missing = [
        variant
        for variant in {v.id: v for v in (dense, *_with_phases(variants))}.values()
        if not store.is_whole(folder_of(store_root, variant))
    ]
    with ExitStack() as stack:
        works = []
        for variant in missing:
            own = stack.enter_context(ExitStack())
            folder = own.enter_context(store.new_folder(folder_of(store_root, variant)))
            works.append(Work(variant, folder, own.close))
        started = time.perf_counter()
        made = [work for work in works if _has_weights(work.variant)]
        by_library = [work for work in made if work.variant.backend != "native"]
        if by_library:
            _with_libraries(base, by_library, calibration, report)
        solved = [work for work in made if work.variant.backend == "native"]
        together = [work for work in solved if not _is_sequential(work.variant)]
        alone = [[work] for work in solved if _is_sequential(work.variant)]
        for works_of_pass in [together, *alone] if together else alone:
            _one_pass(base, works_of_pass, calibration, report)
        fitted = [work for work in works if work.variant.method in cache.FITTED]
        if fitted := [work for work in fitted if not work.variant.decode_schedule]:
            _fit_caches(base, fitted, calibration, report)
        seconds = time.perf_counter() - started
        for done, work in enumerate(works):
            report("checking the built variants", done, len(works))
            ratio = max_perplexity_ratio
            if work.failure:
                continue
            with _alone(work):
                if work.variant.decode_schedule:
                    parts = [folder_of(store_root, v) for v in work.variant.phases()[1:]]
                    readback.join_phases(work, parts)
                else:
                    readback.check(
                        base, work, calibration, folder_of(store_root, dense), ratio, seconds
                    )
                work.finish()
        if left := [work for work in works if work.failure]:
            labels: dict[str, list[str]] = {}
            for work in left:
                labels.setdefault(work.failure, []).append(work.variant.label)
            reasons = [f"{', '.join(those)}: {reason}" for reason, those in labels.items()]
            built = f"(the other {len(works) - len(left)} variants are built)"
            raise ValueError(" ".join([*reasons, built]))
    report("checking the built variants", len(missing), len(missing))


@contextmanager
def _alone(work: Work) -> Iterator[None]:
    """A full disk, or what cannot be solved, ends only the work on this variant; what it has
    written is removed.
    """
    try:
        yield
    except (OSError, *UNSOLVABLE) as error:
        full = isinstance(error, store.FullDiskError)
        if isinstance(error, OSError):
            if error.errno not in store.FULL:
                raise
            full = True
        work.failure = NO_ROOM if full else str(error)
        if work.writer:
            work.writer.give_up()


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
    return variant.method not in DENSE_WEIGHTS and not variant.decode_schedule


def _one_pass(
    base: BaseModel, works: Sequence[Work], calibration: Calibration, report: Report
) -> None:
    """Solve all variants and write their checkpoints."""
    model = layerwise.skeleton(base)
    linears = layerwise.linears_of(model)
    _check_groups(works, linears)
    for work in works:
        if work.variant.method == "hqq":
            hqq.check_available(work.variant)
    tokens, seeds = _draw(base, works, calibration)
    tensors = Tensors(base.path)
    root, layers = layerwise.layers_of(model)
    places = awq.Places([work.variant for work in works])
    with ExitStack() as stack:
        room = checkpoint.header_room(tensors.file_of, linears)
        for work in works:
            file = codes.WEIGHTS if work.variant.method in quantize.CODED else checkpoint.WEIGHTS
            writer = checkpoint.Writer(work.folder / file, room)
            work.writer = stack.enter_context(writer)
        pool = stack.enter_context(_threads())
        gradients = _gradients(base, works, tokens, seeds, stack, report)

        def visit(layer: Layer) -> dict[str, Tensor]:
            report("building the pool: layer", layer.number, len(layers))
            layer = layer._replace(fisher=fisher.read(gradients, layer.number))
            return _solve_layer(layer, works, places.of(layer), pool)

        for name in tensors.file_of:
            if not name.startswith(f"{root}."):
                tensor = tensors.read([name])[name]
                for work in works:
                    _add(work, name, tensor)
        layerwise.walk(tensors.under, model, tokens, seeds, visit)
    report("building the pool: layer", len(layers), len(layers))
    for work in works:
        if not work.failure:
            with _alone(work):
                _write_config(base, work, _dense_linears(model, linears))


def _with_libraries(
    base: BaseModel, works: Sequence[Work], calibration: Calibration, report: Report
) -> None:
    """Build variants of other backends, one after the other."""
    for work in works:
        library.check_available(work.variant)
    model = layerwise.skeleton(base)
    linears = layerwise.linears_of(model)
    _check_groups(works, linears)
    tokens, seeds = _draw(base, works, calibration)
    for done, work in enumerate(works):
        report(f"building with {work.variant.backend}", done, len(works))
        samples = tokens[seeds.get(work.variant.seed, [])]
        started = time.process_time()
        if work.variant.backend == "llmcompressor":
            library.llmcompressor(base, work.variant, samples, work.folder)
        else:
            _write_whole(base, work, library.gptqmodel(base, work.variant, samples))
            _write_config(base, work, _dense_linears(model, linears))
        work.cpu_seconds = time.process_time() - started


def _write_whole(base: BaseModel, work: Work, quantized: Mapping[str, Quantized]) -> None:
    """A checkpoint of which every quantized linear is at hand."""
    tensors = Tensors(base.path)
    room = checkpoint.header_room(tensors.file_of, quantized)
    with checkpoint.Writer(work.folder / checkpoint.WEIGHTS, room) as work.writer:
        for name in tensors.file_of:
            linear = name.removesuffix(".weight")
            stored = tensors.read([name])
            if linear in quantized:
                stored = checkpoint.tensors(linear, quantized[linear], work.variant)
            for key, tensor in stored.items():
                work.writer.add(key, tensor)


def _gradients(
    base: BaseModel,
    works: Sequence[Work],
    tokens: Tensor,
    seeds: Mapping[int, Sequence[int]],
    stack: ExitStack,
    report: Report,
) -> dict[int, Path]:
    """Seed -> folder of the Fisher diagonals, for the methods that want them; a pass of its own."""
    wanting = [work for work in works if work.variant.method == "squeezellm"]
    folders = {}
    for seed in sorted({work.variant.seed for work in wanting}):
        started = time.process_time()
        scratch = tempfile.TemporaryDirectory(dir=wanting[0].folder.parent, prefix=".fisher-")
        folders[seed] = Path(stack.enter_context(scratch))
        fisher.measure(base, tokens[list(seeds[seed])], folders[seed], report)
        for work in wanting:
            if work.variant.seed == seed:
                work.gradient_seconds = time.process_time() - started
    return folders


def _fit_caches(
    base: BaseModel, works: Sequence[Work], calibration: Calibration, report: Report
) -> None:
    """What rounds keys and values, from a few samples run through the whole dense model and back.

    The one pass beside the pool's own: it needs the gradients of the model's loss (KVQuant).
    """
    tokens, seeds = _draw(base, works, calibration)
    kinds = dict.fromkeys((work.variant.seed, work.variant.method) for work in works)
    for done, (seed, method) in enumerate(kinds):
        report("recording keys and values", done, len(kinds))
        model, _ = models.load(base.path)
        model.requires_grad_(False)
        chunks = tokens[seeds[seed][:CACHE_SAMPLES]]
        recorded = rounded.record(model, chunks, method == "kvquant", CACHE_TOKENS)
        for work in works:
            if (work.variant.seed, work.variant.method) == (seed, method):
                started = time.process_time()
                for layer, seen in recorded.items():
                    found = cache.fit(method, work.variant.kv_bits, seen, seed)
                    work.runtime |= {f"{layer}.{name}": value for name, value in found.items()}
                work.cpu_seconds += time.process_time() - started


def _dense_linears(model: nn.Module, linears: Collection[str]) -> list[str]:
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name not in linears
    ]


def _check_groups(works: Sequence[Work], linears: Mapping[str, nn.Linear]) -> None:
    for work in works:
        for name, linear in linears.items():
            try:
                grid.columns(linear.in_features, work.variant.group_size)
            except ValueError as error:
                raise ValueError(f"{work.variant.label}: {error} ({name})") from None


def _threads() -> ThreadPoolExecutor:
    """As many threads as torch uses, each with single-threaded products: jobs share nothing."""
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "solve", torch.set_num_threads, (1,))
    list(pool.map(time.sleep, [0.01] * count))  # each has started and set its own number
    torch.set_num_threads(count)  # theirs was also taken for ours
    return pool


def _draw(
    base: BaseModel, works: Sequence[Work], calibration: Calibration
) -> tuple[Tensor, dict[int, list[int]]]:
    """(token chunks that any seed draws, seed -> their rows); notes each variant's indices."""
    tokenizer = models.load_tokenizer(base.path, base.trust_remote_code)
    how = (calibration.length, calibration.rendering)
    chunks = calibrations.chunks(tokenizer, calibration.fitted, *how)
    needing = [work for work in works if work.variant.method in CALIBRATED]
    drawn = {}
    for work in needing:
        if work.variant.calibration != calibration.identity:
            raise ValueError(f"{work.variant.label} names another calibration than the one given")
        seed = work.variant.seed
        drawn[seed] = calibrations.draw(len(chunks), calibration.samples, seed)
        work.drawn = drawn[seed]
    used = sorted({index for indices in drawn.values() for index in indices}) or [0]
    row = {index: position for position, index in enumerate(used)}
    return chunks[used], {seed: [row[i] for i in indices] for seed, indices in drawn.items()}


def _solve_layer(
    layer: Layer, works: Sequence[Work], places: list[awq.Site], pool: ThreadPoolExecutor
) -> dict[str, Tensor]:
    """Solve one decoder layer for every variant and write it.

    Returns what takes the layer's place in the pass, where that is one sequential variant's.
    """
    changed: dict[str, Tensor] = {}
    by_id = {work.variant.id: work for work in works}
    unchanged = {work.variant.id: set(layer.stored) for work in works}
    wanted = [work.variant for work in works if not work.failure]
    for job, solved in pool.map(_packed, quantize.jobs(layer, wanted, places)):
        if isinstance(solved, Exception):
            for variant in job.variants:
                with _alone(by_id[variant.id]):
                    raise solved
            continue
        for variant, part, packed in solved:
            work = by_id[variant.id]
            _note(work, part)
            if _is_sequential(variant):
                changed |= part.replaced
                changed |= {f"{name}.weight": q.dense() for name, q in part.quantized.items()}
            unchanged[variant.id] -= {f"{name}.weight" for name in part.quantized}
            unchanged[variant.id] -= packed.keys()
            for name, tensor in packed.items():
                _add(work, name, tensor)
    for work in works:
        if work.drawn:
            unseen = [s for s in range(len(layer.inputs)) if not layer.seen(s, work.variant.seed)]
            work.to_nearest += [name for slot in unseen for name in layer.inputs[slot]]
        for name in sorted(unchanged[work.variant.id]):
            _add(work, name, layer.stored[name])
    return changed


def _note(work: Work, part: Part) -> None:
    """What is remembered of a variant's share of a layer beside its tensors."""
    work.cpu_seconds += part.cpu_seconds
    work.runtime |= part.runtime
    for name, linear in part.quantized.items():
        if linear.damp > work.variant.damp_percent:
            work.damp_raised[name] = linear.damp
        if isinstance(linear, Coded):
            work.coded[name] = linear.entry()


def _packed(job: quantize.Job) -> tuple[quantize.Job, list[Packed] | Exception]:
    """What a job gives, with the tensors to store, or why it could not be done."""
    packed = []
    try:
        for variant, part in job.solve():
            stored = dict(part.replaced)
            for name, linear in part.quantized.items():
                stored |= checkpoint.tensors(name, linear, variant)
            packed.append((variant, part, stored))
    except UNSOLVABLE as error:
        return job, error
    return job, packed


def _add(work: Work, name: str, tensor: Tensor) -> None:
    assert work.writer is not None
    if not work.failure:
        with _alone(work):
            work.writer.add(name, tensor)


def _write_config(base: BaseModel, work: Work, dense_linears: list[str]) -> None:
    """Everything of the checkpoint but its tensors: as in the base model, plus the format."""
    for path in base.path.iterdir():
        weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in NOT_COPIED:
            shutil.copyfile(path, work.folder / path.name)
    config = models.read_json(base.path / "config.json")
    if work.coded:
        codes.write_index(work.folder, work.coded)
        shutil.copyfile(base.path / "config.json", work.folder / "config.json")
        return
    config["quantization_config"] = checkpoint.quantization_config(work.variant, dense_linears)
    text = json.dumps(config, indent=2, sort_keys=True)
    (work.folder / "config.json").write_text(text, encoding="utf-8")
