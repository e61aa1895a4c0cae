"""The handlers of requests; requests.py says how requests travel.

Each module has a class with a `handlers` method, which gives its handlers by opcode.
"""
