"""The store: every SQL statement, one file per aggregate, and the driver (`postgres`)."""
