"""The operator against everything a user would pick instead: python -m benchmarks --help.

`cases` says what is measured, `providers` by whom, `places` in which surroundings, `correctness`
whose numbers are right, `timing` and `memory` what it takes, `machine` where; `session` puts these
together. `results` is the file, and `table`, `figures`, `compare` and `report` are made from it.
Nothing here but `table`, `figures` and `progress` needs more than PyTorch.
"""
