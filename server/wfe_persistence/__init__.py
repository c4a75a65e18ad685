"""The workflow persistence server: a gRPC API on top of PostgreSQL.

A request goes through `rpc` (check, call, encode, return) to `store` (one SQL statement) and back;
`app` wires the two together and `cli` starts it with the `settings`.
"""
