"""Law suites that every quantization method, vote rule and benchmark must pass, ours and yours.

In: a record. Out: nothing, or an AssertionError that says which law is broken and by how much.
`check_method` builds variants of a tiny random model (seconds), the others need milliseconds.
For use in tests of packages that extend ptsearch; docs/extending.md has complete examples.
Open `votes.py` first.
"""

from ptsearch.testing.benchmarks import check_benchmark
from ptsearch.testing.methods import check_method
from ptsearch.testing.votes import check_vote_rule

__all__ = ["check_benchmark", "check_method", "check_vote_rule"]
