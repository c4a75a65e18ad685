"""The gRPC side: each handler checks its request, calls the store and returns its response.

`services` is the registry of the services; `boundary` surrounds every handler: identify, admit,
decode, namespace, handle, encode, observe.
"""
