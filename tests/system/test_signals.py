import os
import signal
import threading

import pytest

from pldcli.system import signals
from pldcli.system.signals import stop_error, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_second_acts(number, monkeypatch):
    monkeypatch.setattr(signals, "_ONE_SIGNAL_SECONDS", 0.0)

    def other(*_):
        raise ValueError

    before = {n: signal.signal(n, other) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_requests() as stop:
            assert stop.signal_number == 0
            os.kill(os.getpid(), number)
            assert stop.signal_number == number
            with pytest.raises(ValueError):
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal_number == number
        assert {signal.getsignal(n) for n in before} == {other}
        with pytest.raises(KeyError), stop_requests():
            raise KeyError
        assert {signal.getsignal(n) for n in before} == {other}
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_signal_that_comes_twice_at_once_is_one_request():
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # by default this would end the process
        assert stop.signal_number == signal.SIGTERM


def test_outside_the_main_thread_nothing_is_caught():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_requests() as stop:
            found.append((stop.signal_number, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, before)]


@pytest.mark.parametrize(("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 75)])
def test_a_signal_becomes_the_error_that_ends_the_program(number, word, code):
    error = stop_error(number, "saved at step 7", where="runs/mine", hint="run it again")
    assert (str(error), error.exit_code) == (f"runs/mine: {word}, saved at step 7; run it again", code)
    assert str(stop_error(number)) == word
