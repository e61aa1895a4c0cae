"""What each request does, without how it travels: see requests.py.

Each module has a class with a `handlers` method, which gives its handlers by opcode.
"""
