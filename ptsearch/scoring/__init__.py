"""From answer codes to scores, rates and intervals, all in percent.

In: answer codes (samples,) and what was asked. Out: scores by name; counts for the intervals.
`clean` rules are ours; `ct` and `dt` reproduce the published scoring, faults included, in
`ct_dt.py`. Open `scores.py` first.
"""
