"""Measurements: `./run bench`. Ratios of things measured side by side in one run."""
