"""Commands that need only a server's URL: one file each. They run where no server package is installed.

Read :mod:`router.cli.client.infer` first: the others are built like it, on :mod:`router.cli.common`.
"""
