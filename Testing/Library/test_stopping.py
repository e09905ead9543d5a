"""A stop waits until what is at work is done, or does not where that is wanted; nobody else's handlers are lost."""

from __future__ import annotations

import signal
import threading

import pytest

from HybridMIMLib.stopping import StopLater

pytestmark = pytest.mark.usefixtures("terminable")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_at_work_is_done_first(number: int) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), StopLater() as stop:
        signal.raise_signal(number)
        done.append(stop.asked)
    assert done == [True], "the end of the block is the latest that a stop can wait for"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_nothing_is_raised_where_nobody_asks() -> None:
    with StopLater() as stop, stop.at_once():
        pass
    assert not stop.asked


def test_where_it_may_come_at_once_it_does() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), StopLater() as stop, stop.at_once():
        signal.raise_signal(signal.SIGTERM)
        done.append("more")
    assert done == []


def test_one_that_was_asked_for_before_comes_first_thing() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), StopLater() as stop:
        signal.raise_signal(signal.SIGTERM)
        with stop.at_once():
            done.append("more")
    assert done == []


def test_another_error_in_the_block_is_not_hidden_by_the_stop() -> None:
    with pytest.raises(ZeroDivisionError), StopLater():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with StopLater() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert not stop.asked
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_in_a_thread_it_does_nothing() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopLater():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
