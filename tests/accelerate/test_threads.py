"""The number of threads: fewer beside other busy programs if that is faster, later all of them again."""
import pytest
import torch

from lib.accelerate.threads import PATIENCE_S, WINDOW_S, FixedThreads, LentThreads, ThreadCount, choose_threads

CPU = torch.device("cpu")


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """The numbers of threads that were set, in order; torch itself keeps its own."""
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


def train(threads: ThreadCount, windows: int, speed: float, cores: float) -> None:
    """Trains for some windows at so many steps a second while the process gets so many cores."""
    for _ in range(windows * round(WINDOW_S * speed)):
        threads.add(1 / speed, cores / speed)


def test_a_quiet_machine_keeps_all_threads(used):
    train(ThreadCount(2), windows=40, speed=2, cores=1.9)
    assert used == []


def test_beside_a_busy_program_fewer_threads_stay_if_they_are_faster(used, capsys):
    threads = ThreadCount(2)
    train(threads, windows=1, speed=1, cores=1.2)
    assert used == [1]                                    # a trial
    train(threads, windows=2, speed=2, cores=1.0)
    assert used == [1] and "computing with 1 of 2 threads" in capsys.readouterr().out


def test_fewer_threads_that_are_slower_are_given_up_and_not_tried_again_at_once(used):
    threads = ThreadCount(2)
    train(threads, windows=1, speed=2, cores=1.2)
    train(threads, windows=1, speed=1, cores=1.0)
    assert used == [1, 2]
    train(threads, windows=round(PATIENCE_S / WINDOW_S) - 1, speed=2, cores=1.2)
    assert used == [1, 2]
    train(threads, windows=1, speed=2, cores=1.2)
    assert used == [1, 2, 1]


def test_all_threads_are_tried_again_and_stay_once_the_machine_is_quiet(used, capsys):
    threads = ThreadCount(16)
    train(threads, windows=1, speed=1, cores=3.6)
    train(threads, windows=1, speed=2, cores=3.9)
    assert used == [4]
    train(threads, windows=round(PATIENCE_S / WINDOW_S), speed=2, cores=3.9)
    assert used == [4, 16]                                # a trial
    train(threads, windows=1, speed=8, cores=15.8)
    assert used == [4, 16] and "computing with all 16 threads again" in capsys.readouterr().out


def test_other_threads_of_the_process_do_not_count_as_room_for_more(used):
    train(ThreadCount(1), windows=3, speed=2, cores=1.8)
    assert used == []


def test_a_step_is_timed(monkeypatch, used):
    threads = ThreadCount(2)
    walls, cpus = iter([0.0, 2.0, 2.0, 2.5]), iter([0.0, 2.0, 2.0, 2.5])
    monkeypatch.setattr("lib.accelerate.threads.time.perf_counter", lambda: next(walls))
    monkeypatch.setattr("lib.accelerate.threads.time.process_time", lambda: next(cpus))
    for _ in range(2):
        with threads.step():
            pass
    assert used == [1] and (threads.steps, threads.seconds, threads.cpu_seconds) == (1, 0.5, 0.5)


@pytest.mark.parametrize(("device", "omp_num_threads", "deterministic", "adapts"), [
    (CPU, None, False, True), (torch.device("cuda"), None, False, False), (CPU, "2", False, False),
    (CPU, None, True, False)])
def test_the_number_is_left_alone_where_somebody_chose_it(device, omp_num_threads, deterministic, adapts, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp_num_threads:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    assert isinstance(choose_threads(device, deterministic), ThreadCount if adapts else FixedThreads)


def test_a_library_lends_the_number_to_its_own_steps_and_is_silent(used, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads = LentThreads(2)
    train(threads, windows=1, speed=1, cores=1.2)
    train(threads, windows=2, speed=2, cores=1.0)
    assert used == [] and threads.now == 1
    with threads.step():
        assert used == [1]
    assert used == [1, 2] and capsys.readouterr().out == ""


def test_of_steps_at_the_same_time_one_is_measured(used):
    threads = LentThreads(2)
    with threads.step(), threads.step():
        pass
    assert threads.steps == 1
