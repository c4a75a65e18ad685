"""The store: every SQL statement, one file per aggregate, and the driver (`postgres`).

What a function takes: one that stores a message takes that message, complete with its ids, and a
list takes its filter as the message that holds it. Reads and operations on single rows take values:
ids, tokens, times, and numbers that the service has checked and given their defaults. What
determines how much is returned (`after`, `page_size`, `page_bytes`, `view`) is always a value.

What it returns: a message, a page of messages or ids, or a number. It raises PersistenceError.
"""
