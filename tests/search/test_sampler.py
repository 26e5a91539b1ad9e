"""The set sampler: laws of its parts, and what it finds beside random search."""

import itertools

import numpy as np
import optuna
import pytest
from fakes import fake_table
from numpy.testing import assert_allclose

from ptsearch.search import exact_front, sampler
from ptsearch.search import study as studies
from ptsearch.search.scorer import search_and_holdout


def random_sets(rng: np.random.Generator, n: int, variants: int = 8) -> np.ndarray:
    sets = rng.random((n, variants)) < 0.4
    return np.unique(sets[sets.any(axis=1)], axis=0)


def test_neighbours_differ_by_one_member_more_less_or_exchanged(rng) -> None:
    front = np.array([[True, True, False, False]])
    near = {tuple(row) for row in sampler.neighbours(front, rng).tolist()}
    one_off = {
        members
        for members in itertools.product([False, True], repeat=4)
        if any(members)
        and (apart := sum(a != b for a, b in zip(members, front[0], strict=True)))
        and (apart == 1 or (apart == 2 and sum(members) == 2))
    }
    assert near == one_off | {tuple(front[0].tolist())}


def test_what_is_additive_is_predicted_closely(rng) -> None:
    sets = np.unique(np.concatenate([np.eye(8, dtype=bool), random_sets(rng, 40)]), axis=0)
    bytes_ = 3.0 + sets @ rng.random(8)
    left = random_sets(rng, 60)
    told = sampler.predict(sets, bytes_[:, None], left)
    others = np.array([3.0 + row @ np.linalg.lstsq(sets * 1.0, bytes_ - 3.0)[0] for row in left])
    assert np.sqrt(np.mean((told.mean[:, 0] - others) ** 2)) < 0.15 * bytes_.std()


def test_what_was_tried_is_known(rng) -> None:
    sets = random_sets(rng, 40)
    values = rng.random((len(sets), 2))
    told = sampler.predict(sets, values, sets)
    assert_allclose(told.mean, values, atol=0.01)
    assert (told.deviation < 0.1 * values.std(axis=0)).all()


def test_only_what_is_not_dominated_improves(rng) -> None:
    front = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    losses = np.array([[0.6, 0.6], [0.5, 0.5], [0.2, 0.4], [0.1, 0.3]])
    found = sampler.improvement(front, losses, rng)
    assert found[0] == found[1] == 0
    assert 0 < found[2] < found[3]


def test_it_finds_more_than_random_search_and_keeps_to_limits(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 3, 3, 4, 4, 4, 6, 8), trials=45, max_members=4)
    scorer, _ = search_and_holdout(table)
    whole = exact_front.find_exact_front(table, scorer)

    def share(name: str, seed: int) -> float:
        study = optuna.create_study(directions=["maximize", "maximize", "minimize", "minimize"])
        study.sampler = studies.SAMPLERS[name](seed)
        studies.search(study, table, scorer, lambda *_: "")
        found = studies.completed(study)
        if name == "sets":
            assert sum(len(each.members) > 4 for each in found) <= 5
        return exact_front.shares(whole, [scorer(table, each.members) for each in found])[-1]

    ours, random = ([share(name, seed) for seed in range(2)] for name in ("sets", "random"))
    assert min(ours) > max(random)
    assert min(ours) > 97


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_proposes_the_same(seed: int, tmp_path) -> None:
    table = fake_table(tmp_path, trials=15)
    scorer, _ = search_and_holdout(table)

    def members() -> list[tuple[str, ...]]:
        study = optuna.create_study(directions=["maximize", "maximize", "minimize", "minimize"])
        study.sampler = studies.SAMPLERS["sets"](seed)
        studies.search(study, table, scorer, lambda *_: "")
        return [found.members for found in studies.completed(study)]

    assert members() == members()
