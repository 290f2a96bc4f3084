import random

import pytest

from exporter.monitor.account import Account


@pytest.mark.parametrize("cost", [0.1, 0.6, 2.0, 7.0])
def test_it_never_spends_more_than_its_part_and_nearly_all_of_it(cost):
    rng, account = random.Random(0), Account(0.05)
    account.cost = cost
    for _ in range(2000):
        account.train(10 * rng.random())
        if account.affords:
            account.spend(cost)
        assert account.spent <= 0.05 * account.trained
    assert account.spent == pytest.approx(min(0.05 * account.trained, 2000 * cost), abs=1.1 * cost, rel=0.4)


def test_without_a_budget_there_is_always_time():
    account = Account(None)
    account.spend(1e9)
    assert account.affords
    assert account.affordable_cost(0) == float("inf")
    assert account.epochs_between == 1


def test_what_a_run_can_afford():
    account = Account(0.1)
    account.train(30)
    account.train(20)
    assert account.affordable_cost(epochs=10) == pytest.approx(0.1 * (50 + 200))
    account.spend(4)
    assert account.affordable_cost(epochs=0) == pytest.approx(1)
    assert account.epochs_between == pytest.approx(2)
