"""Who calls, and what they may do: credentials to principals, principals to roles on namespaces.

Knows nothing of gRPC: `rpc/guard.py` hands in what a call brings, and asks before it is served.
"""
