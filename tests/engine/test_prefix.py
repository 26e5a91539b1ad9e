"""Laws of the plan of shared prefixes."""

from hypothesis import given
from hypothesis import strategies as st

from ptsearch.engine.prefix import Plan, packs, share

# Few distinct tokens and a common head, so that much is shared.
sequences = st.lists(
    st.tuples(st.sampled_from([(), (1, 2, 3), (1, 2, 3, 1, 1, 1)]), st.lists(st.integers(0, 2))),
    min_size=1,
    max_size=20,
).map(lambda parts: sorted({(*head, *tail, 9) for head, tail in parts}, key=lambda s: s[::-1]))


def spell(plan: Plan, chain: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for number in chain for token in plan.segments[number].tokens)


@given(sequences, st.integers(1, 8), st.integers(1, 20))
def test_chains_spell_their_sequences(sequences, max_run, min_saving):
    plan = share(sequences, max_run, min_saving)
    assert [spell(plan, chain) for chain in plan.chains] == sequences


@given(sequences, st.integers(1, 8), st.integers(1, 20))
def test_every_segment_is_used_and_follows_its_path(sequences, max_run, min_saving):
    plan = share(sequences, max_run, min_saving)
    assert {n for chain in plan.chains for n in chain} == set(range(len(plan.segments)))
    for number, segment in enumerate(plan.segments):
        assert 1 <= len(segment.tokens) <= max_run
        assert segment.start == len(spell(plan, segment.path))
        assert all(before < number for before in segment.path)
    for chain in plan.chains:
        assert plan.segments[chain[-1]].path == chain[:-1]


@given(sequences, st.integers(1, 4), st.integers(1, 3), st.integers(1, 20))
def test_segments_can_be_made_to_start_at_multiples(sequences, align, runs, min_saving):
    plan = share(sequences, align * runs, min_saving, align)
    assert [spell(plan, chain) for chain in plan.chains] == sequences
    assert all(segment.start % align == 0 for segment in plan.segments)
    for chain in plan.chains:
        assert plan.segments[chain[-1]].path == chain[:-1]


@given(sequences, st.integers(1, 8), st.integers(1, 20))
def test_last_is_the_last_descendant(sequences, max_run, min_saving):
    plan = share(sequences, max_run, min_saving)
    for number, last in enumerate(plan.last):
        below = [n for n, segment in enumerate(plan.segments) if number in segment.path]
        assert last == max([number, *below])


@given(sequences)
def test_without_a_least_saving_no_token_is_repeated(sequences):
    plan = share(sequences, max_run=100, min_saving=1)
    distinct = {sequence[: n + 1] for sequence in sequences for n in range(len(sequence))}
    assert sum(len(segment.tokens) for segment in plan.segments) == len(distinct)


@given(sequences, st.integers(1, 20))
def test_a_higher_least_saving_never_computes_fewer_tokens(sequences, min_saving):
    def tokens(saving: int) -> int:
        return sum(len(s.tokens) for s in share(sequences, 100, saving).segments)

    assert tokens(1) <= tokens(min_saving) <= sum(map(len, sequences))


@given(sequences, st.integers(1, 30), st.integers(1, 4))
def test_packs_hold_every_segment_once_within_the_budget(sequences, max_tokens, max_rows):
    segments = share(sequences, 4, 3).segments
    rows = [n % 3 for n in range(len(segments))]
    sizes = [len(segment.tokens) for segment in segments]
    parts = list(packs(sizes, rows, max_tokens, max_rows, range(len(segments))))
    assert [n for part in parts for n in part] == list(range(len(segments)))
    for part in parts:
        assert len(part) == 1 or (
            sum(len(segments[n].tokens) for n in part) <= max_tokens
            and sum(rows[n] for n in part) <= max_rows
        )


def test_levels_of_prefixes_become_levels_of_segments():
    message, demos = tuple(range(10)), [tuple(range(100, 120)), tuple(range(200, 220))]
    prompts = [(*message, *subject, item) for subject in demos for item in (7, 8, 9)]
    plan = share(prompts, max_run=512, min_saving=10)
    assert [len(segment.tokens) for segment in plan.segments] == [10, 20, 1, 1, 1, 20, 1, 1, 1]
    assert [segment.path for segment in plan.segments][:3] == [(), (0,), (0, 1)]
