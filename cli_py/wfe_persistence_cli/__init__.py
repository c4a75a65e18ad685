"""The commands of `wfe-persistence` that call a server: `list`, `get`, `watch`, `purge`, …

They are clients like any other: all they know of a server is its public API, through
`wfe_persistence_client` and the stubs, and they never import the server, which need not be
installed. `program` has the table of commands, and a file of `commands` each of them;
`options` says which server is meant, `calling` calls it and shows what went wrong.
"""
