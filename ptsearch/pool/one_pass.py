"""The pass over the base model that solves a pool: each layer, for every variant."""

import json
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ptsearch import store
from ptsearch.aliases import Report
from ptsearch.models import coded, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors
from ptsearch.models.coded import Coded
from ptsearch.models.layers import layers_of, linears_of, skeleton
from ptsearch.pool import calibration as calibrations
from ptsearch.pool import fisher, layerwise, resume, writer
from ptsearch.pool.calibration import Calibration
from ptsearch.pool.verify import Work
from ptsearch.quantize import METHODS, awq, grid, solve
from ptsearch.quantize.layer import Layer, LayerResult, ScalingSite
from ptsearch.variant import SEQUENTIAL, Variant

Packed = tuple[Variant, LayerResult, dict[str, Tensor]]  # with the tensors to store

UNSOLVABLE = (ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
NO_ROOM = "no space left on the disk; make room and run it again"
NOT_COPIED = {"config.json", store.MANIFEST, loading.META}


def one_pass(
    base: BaseModel, works: Sequence[Work], calibration: Calibration, report: Report, kept: Path
) -> None:
    """Solve all variants and write their checkpoints; `kept`: what an earlier try had done."""
    model = skeleton(base)
    linears = linears_of(model)
    check_groups(works, linears)
    for work in works:
        METHODS[work.variant.method].check_available()
    tokens, seeds = draw(base, works, calibration)
    passed = resume.Pass(kept, works, tokens, seeds)
    if passed.finished:
        return
    tensors = Tensors(base.path)
    root, layers = layers_of(model)
    scaled = any("sites" in METHODS[work.variant.method].needs for work in works)
    sites = awq.ScalingSites()
    with ExitStack() as stack:
        room = writer.header_room(tensors.file_of, linears)
        for work in works:
            as_codes = METHODS[work.variant.method].storage == "codes"
            file = coded.WEIGHTS if as_codes else writer.WEIGHTS
            work.writer = stack.enter_context(passed.writer(work, file, room))
        pool = stack.enter_context(_threads())
        gradients = _gradients(base, works, tokens, seeds, stack, report)

        def visit(layer: Layer) -> dict[str, Tensor]:
            report("building the pool: layer", layer.number, len(layers))
            layer = layer._replace(fisher=fisher.read(gradients, layer.number))
            return _solve_layer(layer, works, sites.of(layer) if scaled else [], pool)

        around = [name for name in tensors.file_of if not name.startswith(f"{root}.")]
        for name in around if not passed.layers else ():
            tensor = tensors.read([name])[name]
            for work in works:
                _add(work, name, tensor)
        start = layerwise.Start(passed.layers, passed.hidden, passed.keep)
        sequential = any(SEQUENTIAL in work.variant.method_args for work in works)
        layerwise.walk(tensors.under, model, tokens, seeds, visit, start, sequential)
    report("building the pool: layer", len(layers), len(layers))
    for work in works:
        if not work.failure:
            with alone(work):
                write_config(base, work, dense_linears(model, linears))
    passed.finish()


def draw(
    base: BaseModel, works: Sequence[Work], calibration: Calibration
) -> tuple[Tensor, dict[int, list[int]]]:
    """(token chunks that any seed draws, seed -> their rows); notes each variant's indices."""
    tokenizer = loading.load_tokenizer(base.path, base.trust_remote_code)
    how = (calibration.length, calibration.rendering)
    chunks = calibrations.chunks(tokenizer, calibration.fitted, *how)
    needing = [work for work in works if METHODS[work.variant.method].calibrated]
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


def check_groups(works: Sequence[Work], linears: Mapping[str, nn.Linear]) -> None:
    for work in works:
        for name, linear in linears.items():
            try:
                grid.columns(linear.in_features, work.variant.group_size)
            except ValueError as error:
                raise ValueError(f"{work.variant.label}: {error} ({name})") from None


def write_config(base: BaseModel, work: Work, dense_linears: list[str]) -> None:
    """Everything of the checkpoint but its tensors: as in the base model, plus the format."""
    for path in base.path.iterdir():
        weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in NOT_COPIED:
            shutil.copyfile(path, work.folder / path.name)
    config = loading.read_json(base.path / "config.json")
    if work.coded:
        coded.write_index(work.folder, work.coded)
        shutil.copyfile(base.path / "config.json", work.folder / "config.json")
        return
    config["quantization_config"] = writer.quantization_config(work.variant, dense_linears)
    text = json.dumps(config, indent=2, sort_keys=True)
    (work.folder / "config.json").write_text(text, encoding="utf-8")


def dense_linears(model: nn.Module, linears: Collection[str]) -> list[str]:
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name not in linears
    ]


@contextmanager
def alone(work: Work) -> Iterator[None]:
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


def _gradients(
    base: BaseModel,
    works: Sequence[Work],
    tokens: Tensor,
    seeds: Mapping[int, Sequence[int]],
    stack: ExitStack,
    report: Report,
) -> dict[int, Path]:
    """Seed -> folder of the Fisher diagonals, for the methods that want them; a pass of its own."""
    wanting = [work for work in works if "gradients" in METHODS[work.variant.method].needs]
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
    layer: Layer, works: Sequence[Work], sites: list[ScalingSite], pool: ThreadPoolExecutor
) -> dict[str, Tensor]:
    """Solve one decoder layer for every variant and write it.

    Returns what takes the layer's place in the pass, where that is one sequential variant's.
    """
    changed: dict[str, Tensor] = {}
    by_id = {work.variant.id: work for work in works}
    unchanged = {work.variant.id: set(layer.stored) for work in works}
    wanted = [work.variant for work in works if not work.failure]
    for job, solved in pool.map(_packed, solve.jobs(layer, wanted, sites)):
        if isinstance(solved, Exception):
            for variant in job.variants:
                with alone(by_id[variant.id]):
                    raise solved
            continue
        for variant, part, packed in solved:
            work = by_id[variant.id]
            _note(work, part)
            if SEQUENTIAL in variant.method_args:
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


def _note(work: Work, part: LayerResult) -> None:
    """What is remembered of a variant's share of a layer beside its tensors."""
    work.cpu_seconds += part.cpu_seconds
    work.runtime |= part.runtime
    for name, linear in part.quantized.items():
        if linear.damp > work.variant.damp_percent:
            work.damp_raised[name] = linear.damp
        if isinstance(linear, Coded):
            work.coded[name] = linear.entry()


def _packed(job: solve.Job) -> tuple[solve.Job, list[Packed] | Exception]:
    """What a job gives, with the tensors to store, or why it could not be done."""
    packed = []
    try:
        for variant, part in job.solve():
            stored = dict(part.replaced)
            for name, linear in part.quantized.items():
                stored |= writer.tensors(name, linear, variant)
            packed.append((variant, part, stored))
    except UNSOLVABLE as error:
        return job, error
    return job, packed


def _add(work: Work, name: str, tensor: Tensor) -> None:
    assert work.writer is not None
    if not work.failure:
        with alone(work):
            work.writer.add(name, tensor)
