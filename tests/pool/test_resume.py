"""A build that is interrupted or runs out of room: what is kept, and where it goes on."""

import errno
import multiprocessing
import os
import signal
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock
from tiny_pool import CALIBRATION, ROWS, build_tiny, pool

from ptsearch import store
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build, variant_build
from ptsearch.quantize import gptq
from ptsearch.variant import Variant


def test_a_full_disk_leaves_nothing_half_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(variant_build, "save_file", full)
    with pytest.raises(ValueError, match=r"rtn-3b-g32-s0, .*: no space left on the disk"):
        build_tiny(tiny_model, tmp_path, pool([ROWS[0]]))
    left = [folder.name for folder in (tmp_path / "variants").iterdir()]
    assert left == [Variant("tiny", "0").id]  # of the dense model nothing is written


def test_what_was_checked_before_an_interruption_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, _total: int) -> None:
        if stage.startswith("checking") and done == 2:
            raise KeyboardInterrupt

    variants = pool([ROWS[0]])
    with pytest.raises(KeyboardInterrupt):
        build.build_pool(
            BaseModel("tiny", "0", tiny_model), variants, CALIBRATION, tmp_path, interrupt
        )
    whole = [store.is_whole(build.folder_of(tmp_path, variant)) for variant in variants]
    assert whole == [True, True, False, False, False, False]
    assert len(list((tmp_path / "variants").iterdir())) == 3
    build_tiny(tiny_model, tmp_path, variants)
    assert all(store.is_whole(build.folder_of(tmp_path, variant)) for variant in variants)


@pytest.mark.parametrize("stage", ["building the pool: layer", "checking the built variants"])
def test_an_interrupted_pool_goes_on_where_it_stopped(
    tiny_model: Path, tmp_path: Path, stage: str
) -> None:
    rows = [
        *ROWS,
        {"method": "rptq", "bits": 4, "act_bits": 8},
        {"method": "squeezellm", "bits": 3},
    ]
    variants = pool([*rows, {"method": "gptq", "bits": 4, "damp_percent": 0.05, "seed": 2}])
    variants.append(variants[6].sequential())
    base, seen = BaseModel("tiny", "0", tiny_model), list[tuple[str, int]]()

    def interrupt(now: str, done: int, _total: int) -> None:
        if (now, done) == (stage, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build_pool(base, variants, CALIBRATION, tmp_path / "one", interrupt)
    build.build_pool(
        base, variants, CALIBRATION, tmp_path / "one", lambda *event: seen.append(event[:2])
    )
    layers = [done for now, done in seen if now == "building the pool: layer"]
    in_layers = stage.startswith("building")
    assert layers == ([1, 2, 0, 1, 2] if in_layers else [])  # of the pool, of the sequential one
    build_tiny(tiny_model, tmp_path / "two", variants)
    assert not list((tmp_path / "one" / "unfinished").glob("*/"))
    for variant in variants:
        one, two = (build.folder_of(tmp_path / root, variant) for root in ("one", "two"))
        assert store.verify_folder(one) == []
        found, expected = (store.read_json(folder / store.META) for folder in (one, two))
        for key in ("tensors", "perplexity", "calibration_indices", "damp_raised"):
            assert found[key] == expected[key], (variant.label, key)
        assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


def test_a_disk_with_room_for_some_gets_these(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = pool([{"method": "rtn", "bits": [3, 4]}, {"method": "rtn", "bits": 8,
                     "decode_schedule": "4:3"}])  # fmt: skip
    save = variant_build.save_file

    def crowded(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        packed = [t for name, t in tensors.items() if name.endswith("down_proj.weight_packed")]
        if packed and packed[0].shape[1] == 128 * 8 // 32:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(variant_build, "save_file", crowded)
    left = r"rtn-8b-g32-s0, rtn-8b-g32-then3b-s0: no space .*\(the other 3 variants are built\)"
    with pytest.raises(ValueError, match=left):
        build_tiny(tiny_model, tmp_path, variants)
    assert [store.is_whole(build.folder_of(tmp_path, v)) for v in variants] == [True, True, False]
    assert len(list((tmp_path / "variants").iterdir())) == 3
    monkeypatch.undo()
    build_tiny(tiny_model, tmp_path, variants)
    assert store.is_whole(build.folder_of(tmp_path, variants[2]))


def test_what_cannot_be_solved_ends_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(*_: object) -> None:
        raise ValueError("H is not positive definite even with damp=1")

    monkeypatch.setattr(gptq, "factor", hopeless)
    variants = pool([{"method": ["rtn", "gptq", "awq"], "bits": 4}])
    failures = build_tiny(tiny_model, tmp_path, variants)
    assert failures == {variants[1].id: "H is not positive definite even with damp=1"}
    assert [store.is_whole(build.folder_of(tmp_path, v)) for v in variants] == [True, False, True]
    assert len(list((tmp_path / "variants").iterdir())) == 3


FINE = {"damp_percent": 0.05}
GROWING = [
    {"method": "rtn", "bits": [3, 4, 8]},
    {"method": "gptq", "bits": [3, 4], "seed": [0, 1], **FINE},
    {"method": "squeezellm", "bits": 3},
]


class Moment(NamedTuple):
    pipe: Connection
    stage: str = ""
    time: int = 0
    how: int = signal.SIGKILL


def run_and_die(folder: Path, root: Path, rows: list[dict[str, Any]], at: Moment) -> None:
    """Build what is missing, and be killed at the n-th report of a kind; tell each of them."""
    seen = Counter[str]()

    def report(stage: str, done: int, _total: int) -> None:
        seen[stage] += 1
        at.pipe.send((stage, done))
        if (stage, seen[stage]) == (at.stage, at.time):
            os.kill(os.getpid(), at.how)

    missing = [v for v in pool(rows) if not store.is_whole(build.folder_of(root, v))]
    build.build_pool(BaseModel("tiny", "0", folder), missing, CALIBRATION, root, report)


forks = multiprocessing.get_context("forkserver")  # of a process in which torch has no threads
forks.set_forkserver_preload(["tiny_pool", "ptsearch.pool.build", "transformers.models.llama"])


def started(*args: Any) -> tuple[BaseProcess, Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = forks.Process(target=run_and_die, args=(*args[:3], Moment(theirs, *args[3:])))
    process.start()
    theirs.close()
    return process, ours


def heard(pipe: Connection) -> list[tuple[str, int]]:
    """Everything that is reported until the other end closes."""
    events = []
    try:
        while True:
            events.append(pipe.recv())
    except EOFError:
        return events


def bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def solved(events: list[tuple[str, int]]) -> list[int]:
    return [done for stage, done in events if stage == "building the pool: layer" and done < 2]


LAYER, CHECK = "building the pool: layer", "checking the built variants"


def test_killed_again_and_again_a_build_goes_on_and_leaks_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    kills = [(LAYER, 2), (CHECK, 3), (CHECK, 3)]  # the last two after others were finished
    found = []
    for kill in [*kills, ("", 0)]:
        process, pipe = started(tiny_model, tmp_path / "one", GROWING, *kill)
        found += solved(heard(pipe))
        process.join()
        assert process.exitcode == (-signal.SIGKILL if kill[1] else 0)
    assert found == [0, 1, 1]
    build_tiny(tiny_model, tmp_path / "two", pool(GROWING))
    assert bytes_under(tmp_path / "one" / "unfinished") == 0
    for variant in pool(GROWING):
        one, two = (build.folder_of(tmp_path / root, variant) for root in ("one", "two"))
        assert store.verify_folder(one) == []
        expected = {path.name: path.read_bytes() for path in two.glob("*.safetensors")}
        assert {path.name: path.read_bytes() for path in one.glob("*.safetensors")} == expected


def test_two_processes_build_each_variant_once_and_a_dead_one_is_not_waited_for(
    tiny_model: Path, tmp_path: Path
) -> None:
    first, said = started(tiny_model, tmp_path, GROWING[:2], LAYER, 2, signal.SIGSTOP)
    while said.recv() != (LAYER, 1):
        pass
    second, told = started(tiny_model, tmp_path, GROWING)
    events = []
    while not events or not events[-1][0].startswith("waiting"):
        events.append(told.recv())  # it builds what the first one does not
    assert solved(events) == [0, 1]
    assert store.is_whole(build.folder_of(tmp_path, pool(GROWING)[-1]))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert solved(heard(told)) == [1]  # the rest of what the first one began
    second.join()
    first.join()
    assert second.exitcode == 0
    assert all(store.is_whole(build.folder_of(tmp_path, v)) for v in pool(GROWING))
    assert bytes_under(tmp_path / "unfinished") == 0


def test_what_nobody_goes_on_with_is_removed_after_a_week(tiny_model: Path, tmp_path: Path) -> None:
    process, pipe = started(tiny_model, tmp_path, GROWING[1:2], LAYER, 2)
    heard(pipe)
    process.join()
    old = [*(tmp_path / "unfinished").glob("*/checkpoint")]
    assert len(old) == 4
    for folder in old[:3]:
        os.utime(folder, (0, 0))
    with FileLock(f"{old[0].parent}.lock"):  # somebody works there
        build_tiny(tiny_model, tmp_path, pool(GROWING[:1]))
    assert [folder.exists() for folder in old] == [True, False, False, True]
