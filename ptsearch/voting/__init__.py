"""From the answers of members to one answer per sample.

In: answer codes (members, samples) and the members' precision. Out: codes (samples,).
`votes.py` is Algorithm 1 of arXiv 2511.22483; `vote_rules.py` fits and applies each rule;
`lazy.py` stops asking once the vote is decided. Open `votes.py` first.
"""
