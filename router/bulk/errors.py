"""What can go wrong with a bulk file, apart from what the server says.

BulkError
├── InputError     FILE, or how it stands to the model: nothing was sent because of it
└── LedgerError    RESULTS and its ledger do not belong to this FILE and these options
"""

from __future__ import annotations


class BulkError(Exception):
    """Root of what bulk work raises; the message says how to mend it."""


class InputError(BulkError):
    """The file cannot be read, or its columns are not the model's inputs."""


class LedgerError(BulkError):
    """What an earlier run left behind cannot be continued."""
