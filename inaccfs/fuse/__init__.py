"""The kernel's side: mounting, wire structs, the channel, and the namespace."""
