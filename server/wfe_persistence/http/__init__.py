"""The admin port: an HTTP/1.1 server for probes, metrics and those who run the server."""
