"""Several processes that serve together (`--workers`): each is a server of its own, on sockets that
all share; one process more supervises them. Nothing here is loaded with one process.
"""
