"""The console: pages for a browser that show what a workflow persistence server stores.

It calls the server over gRPC as any client does, each time with the token of whoever looks, so what
they may see and do is what the server says. It never imports the server, which serves it on its
admin port (`--console`): `Console.answer` takes requests and returns answers, whatever the HTTP
server. What it sends to browsers is in static/: plain modules and a style sheet; nothing comes from
other hosts.
"""

from wfe_persistence_console.console import Console

__all__ = ["Console"]
