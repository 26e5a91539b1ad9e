"""One process of several on a study of made-up answers.

`python one_of_many.py FOLDER SECONDS KEY=VALUE...`: SECONDS of work for each trial; KEY a field of
the study, or `optuna_db`, `mlflow_db`.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from fakes import fake_table

from ptsearch import cli, jobs
from ptsearch.config import Config
from ptsearch.evaluation.table import Table
from ptsearch.search.scorer import scorers

Replace = Callable[[Any, str, Any], None]


def made_up(replace: Replace, folder: Path, seconds: float = 0.0, **given: Any) -> Config:
    """The config of a study for `jobs.run_study`, whose models and questions are replaced."""
    databases = {key: given.pop(key) for key in ("optuna_db", "mlflow_db") if key in given}
    table = fake_table(folder, bits=(3, 3, 4, 4, 5, 8), **given)
    for key, url in databases.items():
        setattr(table.config, key, url)
    table.config.pool.variants = [{"method": "gptq"}]
    scored = table.ensure

    def ensure(labels: Any) -> None:
        time.sleep(seconds)
        scored(labels)

    table.ensure = ensure  # type: ignore[method-assign]

    @contextmanager
    def tables(*_: object) -> Iterator[tuple[Table, ...]]:
        yield (table,)

    replace(jobs, "tables", tables)
    replace(jobs.record, "for_export", lambda *_: {})
    replace(jobs.skill, "check", scorers)
    return table.config


if __name__ == "__main__":
    pairs = (pair.split("=", 1) for pair in sys.argv[3:])
    given = {key: yaml.safe_load(value) for key, value in pairs}
    config = made_up(setattr, Path(sys.argv[1]), float(sys.argv[2]), **given)
    signal.signal(signal.SIGTERM, cli._terminate)
    sys.exit(cli.ended(jobs.run_study, config))
