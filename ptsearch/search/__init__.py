"""Which ensemble to try next, and the exact Pareto front of those that exist.

In: the table of answers. Out: trials of an Optuna study, the exact front, comparisons with
intervals. `enumeration.py` scores all ensembles with bit masks; `next_build.py` chooses what is
built where not all of a pool is. Open `scorer.py` first, then `study.py` and `trials.py`;
`database.py` lets several processes work on one study.
"""
