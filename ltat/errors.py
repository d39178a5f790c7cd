"""The one exception of wrong use."""


class LtatError(ValueError):
    """A wrong use or a broken input, described in one sentence that names the value and the remedy.

    The command line prints the sentence and exits with code 2; from Python it is an ordinary ``ValueError``.
    """
