"""A mesh on one machine, for users, tests and benchmarks."""
