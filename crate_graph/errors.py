"""The two exceptions whose message is all that a user needs; the command line prints it without a traceback."""

import errno

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what an OSError says where there is no room


class UserError(Exception):
    """A user's mistake: one line that says what is wrong, where, and the remedy. Exit code 2."""


class RunFailed(Exception):
    """A run that cannot go on, for a cause that it can name in one line. Exit code 1."""
