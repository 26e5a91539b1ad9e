"""From answer codes to scores, rates and intervals, all in percent, and what members cost.

In: answer codes (samples,) and the questions. Out: scores by name; counts for the intervals.
The rule set `clean` is ours; `ct` and `dt` reproduce the published scoring, faults included, in
`ct_dt.py`. `rates.py` states the clean scores as linear functions of rates, which enumeration and
intervals need; `cost.py` has memory and latency. Open `scores.py` first.
"""
