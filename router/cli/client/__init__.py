"""The client's commands. None of them needs the server's packages."""
