"""The command line: every command is one file, under `client` or under `server`. Start with `main`, the table
of commands.
"""
