"""What an interrupted pass over the base model had done, so that the next one goes on from there.

A pass keeps, every KEEP_SECONDS, what leaves its last layer and how far each variant's file has
grown. The folder of unfinished variants stays where the process is stopped, and vanishes when the
pool is built or an error ends it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ptsearch import store
from ptsearch.pool import writer
from ptsearch.pool.verify import Work
from ptsearch.variant import SEQUENTIAL

KEEP_SECONDS = 20.0
NOTES = ("cpu_seconds", "gradient_seconds", "damp_raised", "to_nearest", "coded", "drawn")


@contextmanager
def unfinished(store_root: Path, ids: Sequence[str]) -> Iterator[Path]:
    """Where variants grow: a folder that is the same for the same pool, or one of our own while
    another process works there. It stays after an interruption only.
    """
    digest = hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()[:12]
    folder = store_root / "unfinished" / digest
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{digest}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            folder = folder.with_name(f"{digest}-{os.getpid()}")
            folder.mkdir()
        try:
            yield folder
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


class Pass:
    """The state of one pass, kept in `folder`."""

    def __init__(
        self, folder: Path, works: Sequence[Work], tokens: Tensor, seeds: Mapping[int, Any]
    ) -> None:
        first = works[0].variant
        self._path = folder / f"{first.id if SEQUENTIAL in first.method_args else 'pool'}.json"
        self._works = works
        self._saved = time.monotonic()
        asked = [tokens.tolist(), sorted(seeds.items())]
        self._of = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        found = json.loads(self._path.read_text()) if self._path.is_file() else {}
        known = found.get("works", {})
        fits = found.get("finished") or found.get("of") == self._of
        if not fits or any(work.variant.id not in known for work in works):
            found = {}
        self.layers: int = found.get("layers", 0)  # that are done
        self.finished: bool = found.get("finished", False)
        self._files: dict[str, writer.Grown] = {}
        tensors = load_file(self._tensors(self.layers)) if found else {}
        self.hidden = tensors.pop("hidden", None)
        for work in works if found else ():
            mine = known[work.variant.id]
            file = mine["file"]
            table = {name: store.StoredTensor(**t) for name, t in file.pop("table").items()}
            grown = self._files[work.variant.id] = writer.Grown(**file, table=table, odd={})
            for note in NOTES:
                setattr(work, note, mine[note])
            for kind, held in (("runtime", work.runtime), ("odd", grown.odd)):
                start = f"{kind}/{work.variant.id}/"
                of_kind = [key for key in tensors if key.startswith(start)]
                held |= {key.removeprefix(start): tensors[key] for key in of_kind}

    def writer(self, work: Work, file: str, room: int) -> writer.Writer:
        """The writer of a variant's checkpoint, behind what is written already."""
        return writer.Writer(work.folder / file, room, self._files.get(work.variant.id))

    def keep(self, layers: int, hidden: Tensor) -> None:
        """Note that so many layers are done, if it was long ago that it was noted."""
        if time.monotonic() - self._saved >= KEEP_SECONDS:
            self._try_to_write(layers, hidden, finished=False)
            self._saved = time.monotonic()

    def finish(self) -> None:
        """All checkpoints of the pass are written."""
        self._try_to_write(0, torch.empty(0), finished=True)

    def _try_to_write(self, layers: int, hidden: Tensor, finished: bool) -> None:
        """Where the disk is full, what was kept before stays."""
        try:
            self._write(layers, hidden, finished)
        except OSError as error:
            if error.errno not in store.FULL:
                raise

    def _write(self, layers: int, hidden: Tensor, finished: bool) -> None:
        tensors, of_works = {"hidden": hidden}, {}
        for work in self._works:
            if work.failure:
                continue
            assert work.writer is not None
            grown = work.writer.grown()
            own = {note: getattr(work, note) for note in NOTES}
            file = grown._asdict()
            file["table"] = {name: asdict(tensor) for name, tensor in grown.table.items()}
            for kind, held in (("runtime", work.runtime), ("odd", file.pop("odd"))):
                tensors |= {f"{kind}/{work.variant.id}/{name}": t for name, t in held.items()}
            of_works[work.variant.id] = own | {"file": file}
        with writer.Writer(self._tensors(layers), writer.header_room(tensors, ())) as kept:
            for name, tensor in tensors.items():
                kept.add(name, tensor)
        state = {"of": self._of, "layers": layers, "finished": finished, "works": of_works}
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(state), encoding="utf-8")
        part.replace(self._path)
        for old in self._path.parent.glob(f"{self._path.stem}-*.safetensors"):
            if old != self._tensors(layers):
                old.unlink()

    def _tensors(self, layers: int) -> Path:
        return self._path.with_name(f"{self._path.stem}-{layers}.safetensors")
