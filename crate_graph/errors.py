"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A user's mistake: one line that says what is wrong, where, and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """
