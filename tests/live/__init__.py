"""Against real KVMs, run by hand: tests/live/run, and tests/live/record for rows."""
