from __future__ import annotations

import pytest

from expunge.core.errors import Fault, Faults, UserError


def test_faults_of_several_blocks_are_raised_together_and_each_once() -> None:
    faults = Faults()
    faults.raise_found()
    for message in ("one", "two", "one"):
        with faults.noted():
            raise UserError(message, "do this")
    with pytest.raises(UserError) as raised:
        faults.raise_found()
    assert raised.value.faults == (Fault("one", "do this"), Fault("two", "do this"))


def test_only_errors_that_the_user_can_fix_are_recorded() -> None:
    faults = Faults()
    with pytest.raises(ZeroDivisionError), faults.noted():
        raise ZeroDivisionError
    assert faults.faults == []
