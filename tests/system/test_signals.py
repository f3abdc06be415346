import os
import signal
import threading
import time

import pytest

from pldcli.errors import PreemptedError
from pldcli.system import signals
from pldcli.system.signals import stop_error, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
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


def test_outside_of_training_a_signal_is_a_stop_too(monkeypatch):
    monkeypatch.setattr(signals, "_ONE_SIGNAL_SECONDS", 0.0)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        signals.stop_on_signals()
        for number in before:
            with pytest.raises(PreemptedError, match="terminated; run the same command again to go on"):
                signal.raise_signal(number)
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM
            killed = []
            monkeypatch.setattr(signals.signal, "raise_signal", lambda number: killed.append(signal.getsignal(number)))
            os.kill(os.getpid(), signal.SIGTERM)
            assert killed == [signal.SIG_DFL], "a second one ends the program at once, as it does by default"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def test_the_timer_asks_once_and_leaves_the_first_signal_to_be_noted():
    with stop_requests(at=time.monotonic() + 0.05) as stop:
        while not stop.signal_number:
            time.sleep(0.01)
        assert stop.signal_number == signal.SIGALRM
        os.kill(os.getpid(), signal.SIGINT)  # the first that anybody sent: noted, not fatal
        assert stop.signal_number == signal.SIGINT
    with stop_requests(at=time.monotonic() + 0.1) as stop:
        pass
    time.sleep(0.2)  # a timer that was left on would end the process
    assert stop.signal_number == 0
    with stop_requests(at=time.monotonic() - 5.0) as stop:  # the time was over before it began
        time.sleep(0.05)
        assert stop.signal_number == signal.SIGALRM


@pytest.mark.parametrize(
    ("number", "word", "code"),
    [
        (signal.SIGINT, "interrupted", 130),
        (signal.SIGTERM, "terminated", 75),
        (signal.SIGUSR1, "terminated", 75),
        (signal.SIGALRM, "time is up", 75),
    ],
)
def test_a_signal_becomes_the_error_that_ends_the_program(number, word, code):
    error = stop_error(number, "saved at step 7", where="runs/mine", hint="run it again")
    assert (str(error), error.exit_code) == (f"runs/mine: {word}, saved at step 7; run it again", code)
    assert str(stop_error(number)) == word
