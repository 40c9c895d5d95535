"""The tests, with what they share: table.py, tolerance.py, exact.py and the fixtures."""
