"""Commands that need the server's packages: they run a server, or read its policy and its queues.

Start with `serve`; `foreground` is what a server that runs in a terminal has in common with the demo.
"""
