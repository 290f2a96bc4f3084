import dataclasses
import pathlib

import numpy as np
import pytest
import serving_models
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.local_server import warmup
from serving.local_server.errors import ServingError

X = serving_models.X
LIMIT = 1 << 20


@dataclasses.dataclass
class Elsewhere:
    """A servable with a warmup file of the test's."""

    servable: object
    path: pathlib.Path

    def __post_init__(self):
        self.ran = []

    def signature(self, name):
        return self.servable.signature(name)

    @property
    def version(self):
        return 1

    def run(self, name, inputs, outputs):
        self.ran.append((name, {alias: array.shape for alias, array in inputs.items()}))
        return self.servable.run(name, inputs, outputs)


@pytest.fixture
def replay(servable, tmp_path):
    def replay(*records):
        path = tmp_path / warmup.FILE
        path.parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record if isinstance(record, bytes) else record.SerializeToString())
        elsewhere = Elsewhere(servable, tmp_path)
        count = warmup.replay(elsewhere, LIMIT)
        assert count == len(elsewhere.ran)
        return elsewhere.ran

    return replay


def test_every_request_is_asked_in_its_order(replay):
    records = [
        serving_models.warmup_record("forward", x=X),
        serving_models.warmup_record("", x1=X[:1], x2=X),
        serving_models.warmup_record("ntk_diagonal", x=np.zeros((0, 4), "f")),
    ]
    assert replay(*records) == [
        ("forward", {"x": (3, 4)}),
        ("serving_default", {"x1": (1, 4), "x2": (3, 4)}),
        ("ntk_diagonal", {"x": (0, 4)}),
    ]


def test_an_empty_file_and_none(replay, servable, tmp_path):
    assert replay() == []
    assert warmup.replay(Elsewhere(servable, tmp_path / "nothing"), LIMIT) == 0


def problem(replay, *records):
    with pytest.raises(ServingError) as error:
        replay(*records)
    return error.value.code.name, str(error.value)


def test_a_request_that_fails_is_named(replay):
    good, bad = serving_models.warmup_record("forward", x=X), serving_models.warmup_record("forward", y=X)
    code, message = problem(replay, good, bad)
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("warmup request 2: Signature input alias: x(feed name: ")


def test_records_that_are_no_predict_requests(replay):
    log = prediction_log_pb2.PredictionLog(regress_log=prediction_log_pb2.RegressLog())
    assert problem(replay, log) == ("UNIMPLEMENTED", "warmup request 1: Unsupported log_type for warmup: regress_log")
    assert problem(replay, b"\xff\xff")[1].startswith("warmup request 1: Failed to parse warmup record from")


def test_more_records_than_tf_serving_replays(replay):
    record = serving_models.warmup_record("text", x=np.array([b"a"], object))
    assert len(replay(*[record] * 1000)) == 1000
    assert "exceeds the maximum (1000)" in problem(replay, *[record] * 1001)[1]


def test_a_file_that_is_no_tfrecord(servable, tmp_path):
    path = tmp_path / warmup.FILE
    path.parent.mkdir()
    path.write_bytes(b"not a TFRecord, but long enough to be one")
    with pytest.raises(ServingError, match="Please verify your warmup data is in TFRecord format") as error:
        warmup.replay(Elsewhere(servable, tmp_path), LIMIT)
    assert error.value.code.name == "DATA_LOSS"
