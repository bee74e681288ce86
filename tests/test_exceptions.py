import pickle

import pytest
from sklearn.exceptions import ConvergenceWarning

from drojko import exceptions


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InvalidDataError", ValueError),
        ("NonFiniteError", ArithmeticError),
        ("UnboundedRiskError", ValueError),
        ("UnsupportedError", NotImplementedError),
    ],
)
def test_caught_as_a_builtin_and_as_our_own(name, builtin):
    error = getattr(exceptions, name)
    with pytest.raises(builtin, match="reason"):
        raise error("reason")
    with pytest.raises(exceptions.DrojkoError):
        raise error("reason")


@pytest.mark.promise(7)
def test_non_finite_error_keeps_its_state_across_processes():
    error = pickle.loads(pickle.dumps(exceptions.NonFiniteError("NaN", last_state={"step": 6})))
    assert str(error) == "NaN"
    assert error.last_state == {"step": 6}
    assert exceptions.NonFiniteError("NaN").last_state is None


def test_convergence_warning_is_scikit_learns():
    assert exceptions.ConvergenceWarning is ConvergenceWarning
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = exceptions.Nothing
