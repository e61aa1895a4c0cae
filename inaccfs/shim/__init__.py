"""The patch itself: one file's rules and state. No FUSE, no sockets, no KVM."""
