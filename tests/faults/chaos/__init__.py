"""`./run faults`: what was acknowledged survives, whatever is killed, cut or filled up.

Client processes (`client`, `calls`, `tags`) write down each call and its return (`history`).
Meanwhile a fault (`faults`) is injected into real processes (`stage`, `network`). Afterwards the
invariants are checked against what is stored (`check`). `runner` does one run, `planted` shows that
the check finds bugs, `__main__` is the command. docs/reliability.md tells what is promised.
"""
