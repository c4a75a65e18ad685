"""Benchmarks: `./run bench`. They report ratios of things measured side by side in one run."""
