"""The evaluated table of a pool, for replays: everything a study would build and evaluate."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ptsearch import jobs
from ptsearch.config import Config
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import progress as bars
from ptsearch.report import terminal

CONF = Path(__file__).resolve().parents[1] / "conf"


def real_table(overrides: list[str]) -> Table:
    """The table of `+study=pareto` with `overrides`, all of its variants evaluated."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("config", ["+study=pareto", *overrides])
    config: Config = OmegaConf.to_object(raw)
    jobs.need_pool(config)
    with jobs.tables(config, bars.progress(terminal.console(stderr=True))) as (table, *_):
        table.ensure([DENSE, *table.variants])
    return table


if __name__ == "__main__":
    found = real_table(sys.argv[1:])
    sys.stderr.write(f"{len(found.entries)} entries, degenerate: {found.degenerate()}\n")
