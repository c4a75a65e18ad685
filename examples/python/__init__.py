"""A small workflow engine on the Python provider adapter; see README.md."""
