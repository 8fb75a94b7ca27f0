"""The error a user can cause."""


class FoveateError(ValueError):
    """Bad input: the message says in one sentence what is wrong and what is possible.

    Everything that a user can cause by an argument, a file or a configuration raises this class (or a
    subclass of it), so that the command line can print the sentence and exit with code 2, and a server
    can answer with a client error, without guessing from the text.
    """


def check_text(text: str, what: str) -> None:
    """Refuse text that no encoding can write: half of a character, as JSON escapes and broken command lines make it.

    Raises:
        FoveateError: the text holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = text[error.start]
        raise FoveateError(f"{what} holds half of a character ({broken!a}); write it in UTF-8.") from None
