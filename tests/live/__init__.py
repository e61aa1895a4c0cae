"""Against real KVMs, by hand: tests/live/run, and tests/live/record for the rows."""
