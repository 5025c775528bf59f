"""g-Acc is the mean of three val splits."""

import numpy as np
import pytest

from samtok.metrics.averages import G_ACC_DATASETS, g_acc
from samtok.metrics.referring import Samples, res


def _result(inside: int, samples: int = 1) -> dict:
    one = np.array([inside] * samples, np.int64)
    box = np.zeros((samples, 4), np.int64)
    return res(Samples(one, one, one * 0 + 1000, box, box, np.zeros(samples, bool), ("",) * samples))


def test_datasets_weigh_alike_whatever_their_size():
    results = {"refcoco": _result(800), "refcoco+": _result(700, 5), "refcocog": _result(600, 2)}
    found = g_acc(results)
    assert found == pytest.approx(0.7)
    assert g_acc(dict(reversed(results.items()))) == found


def test_three_results_are_needed():
    results = {name: _result(500) for name in G_ACC_DATASETS}
    assert g_acc(results) == 0.5
    assert g_acc({**results, "refcocog": _result(0, 0)}) is None
    with pytest.raises(ValueError, match="got refcoco, refcoco\\+"):
        g_acc({name: results[name] for name in G_ACC_DATASETS[:2]})
    with pytest.raises(ValueError, match="got none"):
        g_acc({})
