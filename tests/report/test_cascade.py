"""The threshold of a cascade: the least that changes no more answers than it may."""

import numpy as np
from fakes import fake_table
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.report import cascade
from ptsearch.search.scorer import search_and_holdout

sample = st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan")]), st.booleans())


@given(st.lists(sample, min_size=1, max_size=30), st.sampled_from([0.0, 0.1, 0.3]))
def test_the_threshold_changes_as_much_as_it_may_and_no_more(samples, most) -> None:
    sure, changed = np.array([s for s, _ in samples]), np.array([c for _, c in samples])
    found = cascade.threshold(sure, changed, most)

    def share(level: float) -> float:
        return float((changed & (sure >= level)).sum() / sure.size)

    assert share(found) <= most
    assert all(share(level) > most for level in sure[sure < found])


def test_a_cascade_is_measured_on_both_halves(tmp_path) -> None:
    table, members = fake_table(tmp_path), ("v0-3b", "v2-4b", "v4-8b")
    scorers = search_and_holdout(table)
    vote = scorers[0].vote(table, members)
    rng = np.random.default_rng(0)
    sure = {}
    for label in members:  # sure where it agrees with the others, mostly
        codes = table.entries[label].codes
        sure[label] = rng.random(codes.size) + (codes == table.entries["none"].codes)
    found = cascade.fit(table, scorers, members, sure)
    codes = table.entries[found["first"]].codes[scorers[0].mask]
    alone = (sure[found["first"]][scorers[0].mask] >= found["margin"]) & (codes >= 0)
    assert 0 < found["search"]["alone"] == 100 * alone.mean() < 100
    assert found["search"]["changed"] == 100 * (codes != vote)[alone].sum() / vote.size <= 1
    assert found["latency_ms"] < sum(table.entries[m].meta["latency_ms"] for m in members)
    assert found["holdout"].keys() == {"alone", "changed", "trust"}
