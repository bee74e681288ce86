import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from drojko._threads import in_order, one_thread, sharing


def settings():
    """Threads of torch, and most threads of any BLAS: some solvers bring one that has only one."""
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return torch.get_num_threads(), max(blas)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # noqa: TID251  the setting under test
    with threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)  # noqa: TID251


def test_sets_one_and_restores(threads):
    with one_thread():
        assert settings() == (1, 1)
        with one_thread():
            assert settings() == (1, 1)
        assert settings() == (1, 1)  # the inner exit must not restore yet
    assert settings() == (3, 2)


def test_large_work_shares_the_threads_of_torch_alone(threads):
    with one_thread(small=False):
        assert settings() == (3, 1)
        with one_thread():
            assert settings() == (1, 1)
        assert settings() == (3, 1)
    assert settings() == (3, 2)


@pytest.mark.promise(13)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_restores_after_an_error(threads, error):
    with pytest.raises(error), one_thread():
        raise error
    assert settings() == (3, 2)


@pytest.mark.promise(10)
def test_overlapping_fits_restore_the_callers_setting(threads):
    """A naive save and restore ends at 1: the second fit saves what the first one has set."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with one_thread():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with one_thread():
            second_in.set()
            first_out.wait(10)

    users = [threading.Thread(target=target) for target in (first, second)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(10)
    assert first_out.is_set()
    assert settings() == (3, 2)


def test_many_concurrent_users(threads):
    def work(pause):
        for _ in range(20):
            with one_thread():
                time.sleep(pause)

    users = [threading.Thread(target=work, args=(1e-5 * k,)) for k in range(8)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert settings() == (3, 2)


def test_work_is_taken_in_order_by_threads_with_one_thread_each(threads):
    seen = []

    def work(item):
        seen.append((threading.get_ident(), settings()))
        time.sleep(0.002 * (item % 3))
        return item * item

    with sharing(2), one_thread():
        assert list(in_order(work, range(40))) == [i * i for i in range(40)]
    assert len({ident for ident, _ in seen}) == 2
    assert threading.get_ident() in {ident for ident, _ in seen}  # it does not only wait
    assert {found for _, found in seen} == {(1, 1)}
    assert settings() == (3, 2)
    assert list(in_order(abs, [-1])) == [1]  # in this thread


def test_work_within_shared_work_stays_in_its_thread():
    def work(item):
        return list(in_order(lambda _: threading.get_ident(), range(5))), threading.get_ident()

    with sharing(2):
        for idents, ident in in_order(work, range(20)):
            assert set(idents) == {ident}


def test_no_thread_runs_far_ahead_of_who_takes_the_results():
    """Results wait in memory until they are taken."""
    begun = []
    with sharing(2):
        for k, item in enumerate(in_order(lambda i: begun.append(i) or i, range(200))):
            assert item == k
            time.sleep(0.0005)
            assert len(begun) <= k + 6


def test_an_error_of_the_items_themselves_is_raised_after_those_before():
    def items():
        yield from range(7)
        raise OSError("unreadable")

    seen = []
    with pytest.raises(OSError, match="unreadable"), sharing(2):
        seen.extend(in_order(abs, items()))
    assert seen == list(range(7))
    before = threading.active_count()
    with sharing(2):
        for _ in in_order(abs, range(10_000)):
            break
    assert threading.active_count() == before


@pytest.mark.promise(13)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_shared_work_ends_it(threads, error):
    done = []

    def work(item):
        done.append(item)
        if item == 6:
            raise error
        return item

    with pytest.raises(error), sharing(2):
        list(in_order(work, range(10_000)))
    assert len(done) < 1000
    assert settings() == (3, 2)
