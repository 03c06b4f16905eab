"""Measurements beside peers. A package, so that no other library's `benchmarks` takes its place in imports."""
