"""Every choice under conf/ composes into a valid Config."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ptsearch.config import CONF, JOBS, Config

CHOICES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*/*.yaml"))


def composed(*overrides: str) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_choice_composes(choice: Path) -> None:
    group = str(choice.parent)
    append = "+" if group in (*JOBS, "published") else ""
    config = composed(f"{append}{group}={choice.name}")
    assert group == "published" or getattr(config, group) is not None


def test_published_runs_have_their_configurations_and_figures() -> None:
    from ptsearch.report import paper

    names = sorted(path.stem for path in (CONF / "published").glob("*.yaml"))
    assert names == ["llama2_13b_chat", "llama2_7b_chat", "vicuna_13b", "vicuna_7b"]
    for name in names:
        config = composed("+study=paper", f"+published={name}")
        assert (config.benchmarks.name, config.benchmarks.rules) == ("paper", "ct")
        assert (config.pool.name, config.pool.group_size) == ("seeds", 128)
        assert len(config.model.revision) == 40
        assert paper.published(config.model)
        assert composed(f"+published={name}").study is None
    assert composed("+published=llama2_7b_chat").benchmarks.prompt == "ct_llama2"


def test_there_are_choices_of_every_group() -> None:
    groups = {str(choice.parent) for choice in CHOICES}
    assert groups >= {"model", "pool", "calibration", "benchmarks", "engine", *JOBS}


def test_defaults_are_the_embedded_ones() -> None:
    config = composed("+study=pareto")
    assert (config.model.name, config.benchmarks.name) == ("smollm2", "pocket")
    assert config.study is not None
    assert config.study.name == "pareto-smollm2-default-pocket"
    assert (config.study.trials, config.study.max_members) == (200, 5)


def test_the_paper_has_a_pool_of_its_own_unless_one_is_named() -> None:
    config = composed("+study=paper")
    assert config.study is not None
    assert (config.study.kind, config.study.name) == ("paper", "paper-smollm2-seeds-pocket-clean")
    assert composed("+study=paper", "pool=wide").pool.name == "wide"


def test_the_pool_of_the_paper_has_both_kinds_of_ensembles() -> None:
    from ptsearch.search import paper as searched
    from ptsearch.variant import Variant, expand_pool, unique_labels

    pool = composed("+study=paper").pool
    defaults = {"group_size": pool.group_size, "backend": pool.backend}
    spanned = unique_labels(expand_pool(Variant("m", "r"), pool.variants, defaults, "text"))
    methods = [{spanned[label].method for label in each} for each in searched.precisions(spanned)]
    assert methods == [{"gptq"}, {"awq"}]
    assert [len(members) for members in searched.seeds(spanned)] == [3, 3, 2, 2]


@pytest.mark.parametrize(
    "size",
    [
        ("paper", 6, 6),
        ("default", 6, 12),
        ("wide", 18, 20),
        ("nested", 6, 6),
        ("rounding", 6, 6),
        ("codes", 6, 6),
    ],
)
def test_pools_have_their_sizes(size: tuple[str, int, int]) -> None:
    from ptsearch.variant import Variant, expand_pool, unique_labels

    name, least, most = size
    pool = composed(f"pool={name}").pool
    defaults = {"group_size": pool.group_size, "backend": pool.backend}
    variants = expand_pool(Variant("m", "r"), pool.variants, defaults, "text")
    assert least <= len(unique_labels(variants)) <= most
