"""How often the held-out half of the data was read, by all studies that share a cache."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ptsearch import store
from ptsearch.benchmarks import item_hash
from ptsearch.benchmarks.split import HOLDOUT, half
from ptsearch.evaluation.table import Table
from ptsearch.search.study import Members

RECORD = "holdout_reads.json"  # data -> of each reading, the ensembles that it scored first


def count(table: Table, chosen: Iterable[Members]) -> int:
    """Readings of these held-out items so far, this one included.

    Only new choices count: looking again at ensembles that were scored before is no reading, and a
    study of another name goes on counting. A cache that cannot be written is not counted in.
    """
    cache, salt = Path(table.config.cache_dir), table.config.benchmarks.split.salt
    items = {sample.item for benchmark in table.benchmarks for sample in benchmark.samples}
    data = item_hash(*sorted(item for item in items if half(item, salt) == HOLDOUT))
    scored = {_key(table, members) for members in chosen}
    with suppress(PermissionError), store.lease(cache, RECORD, lambda: None):
        there = (cache / RECORD).exists()
        record: dict[str, list[list[str]]] = store.read_record(cache / RECORD) if there else {}
        readings = record.setdefault(data, [])
        if new := scored.difference(*readings):
            readings.append(sorted(new))
            store.write_record(cache / RECORD, record)
        return len(readings)
    return 1


def _key(table: Table, members: Members) -> str:
    """Of an ensemble: who votes, and how."""
    ids = sorted(table.variant(label).id for label in members)
    what = json.dumps([ids, asdict(table.config.vote)], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:12]
