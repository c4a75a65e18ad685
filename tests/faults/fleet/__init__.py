"""Fleets of real hosts of the engine, killed at random, and what they left: `./run fleet`.

`cast` has the processes, `runner` kills them, `judge` decides by journals and tables whether what
happened is what should have; `compare` measures without kills. The host itself is
the example `fleet` of `client_rs/engine-1.11`.
"""
