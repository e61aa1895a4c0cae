"""The control socket: the messages as typed structs, and the server."""
