"""A running server tells the manifest, and refuses to join requests."""

import json

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2


def test_signature_tells_the_manifest(exported):
    one = exported("two_inputs")
    told = one.loaded.signatures["ntk_manifest"]
    assert json.loads(told(key=tf.constant(""))["manifest"].numpy()) == one.result.manifest
    assert json.loads(told(key=tf.constant("kernel"))["manifest"].numpy()) == one.result.manifest["kernel"]
    assert told(key=tf.constant("nothing"))["manifest"].numpy() == b"null"
    assert json.loads(one.loaded.ntk_manifest("")["manifest"].numpy()) == one.result.manifest


def test_in_a_session(exported):
    one = exported("two_inputs")
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(one.path)).signature_def["ntk_manifest"]
        value = session.run(definition.outputs["manifest"].name, {definition.inputs["key"].name: ""})
    assert json.loads(value) == one.result.manifest


def test_two_exports_in_one_process_tell_their_own(exported):
    names = [exported(name).loaded.ntk_manifest("model")["manifest"].numpy() for name in ("two_inputs", "coupled")]
    assert [json.loads(name) for name in names] == [
        exported(name).result.manifest["model"] for name in ("two_inputs", "coupled")
    ]


def test_batching_servers_refuse_the_first_warmup_request(exported):
    """TF Serving's batching wants an axis 0 in every input, whatever its parameters are; see batching_session.py."""
    path = exported("two_inputs").path / "assets.extra/tf_serving_warmup_requests"
    record = next(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
    assert request.model_spec.signature_name == "ntk_manifest"
    assert [len(proto.tensor_shape.dim) for proto in request.inputs.values()] == [0]
