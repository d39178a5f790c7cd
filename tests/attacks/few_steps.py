"""AutoAttack in a second, where what is under test is not how strong it is."""

import pyautoattack

from ltat.attacks import official

BUILD = official.build


def build(*arguments, **settings) -> pyautoattack.AutoAttack:
    """In place of ``official.build``: 50 queries instead of 5000, and 10 steps instead of 100."""
    package = BUILD(*arguments, **settings)
    package.square.n_queries = 50
    package.apgd.n_iter = package.apgd_targeted.n_iter = package.fab.n_iter = 10
    return package
