"""The conformance suite of the protocol `wfe.persistence.v1`, for any server that speaks it.

`suite/` has the tests, `cli` is the command that runs them, and `plugin` gives them their server.
"""
