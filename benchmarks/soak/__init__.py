"""Mixed load for a long time, on a large store."""
