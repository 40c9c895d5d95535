"""Times act_reg against what a user would write instead: python -m benchmarks --help.

`cases` says what is measured, `providers` who computes it, `places` in which network. `correctness`
checks a provider before `timing` and `memory` measure it; `session` does so for every case.
`results` is the file. `report` writes the pages from it, with `tables` and `figures`.
Only `figures` needs more than PyTorch: matplotlib.
"""
