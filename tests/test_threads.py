import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from drojko._threads import one_thread


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
