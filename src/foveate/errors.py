"""The error a user can cause."""


class FoveateError(ValueError):
    """Bad input: the message says in one sentence what is wrong and what is possible.

    Everything that a user can cause by an argument, a file or a configuration raises this class (or a
    subclass of it), so that the command line can print the sentence and exit with code 2, and a server
    can answer with a client error, without guessing from the text.
    """
