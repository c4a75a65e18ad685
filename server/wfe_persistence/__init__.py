"""The workflow persistence server: gRPC in front, PostgreSQL behind.

A request travels `rpc` (check, call, answer) → `store` (one SQL statement) and back;
`app` wires the two together and `cli` starts it.
"""
