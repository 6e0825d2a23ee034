"""The one exception that means "the user can mend this"; the command line prints its line and exits with status 2."""


class UserError(Exception):
    """A fault in a file, an option or a value that the user gave.

    The message is one line that names the file or option, says what is wrong and what to do about it.
    """
