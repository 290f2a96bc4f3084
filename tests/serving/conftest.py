"""Workers in this process, for all tests of data sets."""

import distributed
import pytest

from serving.dataset import engine


@pytest.fixture(scope="session")
def cluster():
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", memory_limit=None
    ) as cluster:
        yield engine.Workers(cluster.scheduler_address, wait=10.0)
