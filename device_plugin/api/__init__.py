"""What is spoken on unix sockets: one `.proto` for each peer, and the stubs made from them.

Written from the wire facts: names, types and numbers. Only the `.proto` files are edited, the rest
comes from `tools/generate.py`.
"""
