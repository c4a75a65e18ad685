"""The gRPC side: each handler checks its request, calls the store and answers.

`boundary` stands around every handler: bytes to message, namespace, deadline, errors to statuses.
"""
