"""The driver: a connection pool on PostgreSQL, one round trip per call, retries, errors.

It knows nothing of workflows or schemas. `Database` (in `database`) is its entrance; `pipeline`
puts one batch of statements on the wire, `prepared` says which of them are prepared on a
connection, `sqlstate` what PostgreSQL's errors mean, `fairness` whose turn it is to use a
connection.
"""
