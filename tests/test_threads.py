import threading
import time

import pytest
import torch

from drojko._threads import one_torch_thread


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # noqa: TID251  the setting under test
    yield
    torch.set_num_threads(before)  # noqa: TID251


def test_sets_one_and_restores(three_threads):
    with one_torch_thread():
        assert torch.get_num_threads() == 1
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1  # the inner exit must not restore yet
    assert torch.get_num_threads() == 3


def test_inactive_leaves_the_setting_alone(three_threads):
    with one_torch_thread(False):
        assert torch.get_num_threads() == 3


@pytest.mark.promise(13)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_restores_after_an_error(three_threads, error):
    with pytest.raises(error), one_torch_thread():
        raise error
    assert torch.get_num_threads() == 3


@pytest.mark.promise(10)
def test_overlapping_fits_restore_the_callers_setting(three_threads):
    """A naive save and restore ends at 1: the second fit saves what the first one has set."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with one_torch_thread():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with one_torch_thread():
            second_in.set()
            first_out.wait(10)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert first_out.is_set()
    assert torch.get_num_threads() == 3


def test_many_concurrent_users(three_threads):
    def work(pause):
        for _ in range(20):
            with one_torch_thread():
                time.sleep(pause)

    threads = [threading.Thread(target=work, args=(1e-5 * k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_num_threads() == 3
