"""The rows: what is asked, by group."""
