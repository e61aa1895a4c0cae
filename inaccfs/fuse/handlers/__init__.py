"""The handlers of requests; see requests.py for the transports.

Each module has a class with a `handlers` method, which gives its handlers by opcode.
"""
