"""How a server of exported kernels behaves. serving_target.py says which server: the embedded one, or TF Serving."""

import base64
import concurrent.futures
import itertools
import json
import shutil
import threading

import grpc
import numpy as np
import pytest
import serving_models
import serving_target
import tensorflow as tf

import serving

X = serving_models.X
SIGNATURES = ["serving_default", "ntk", "ntk_symmetric", "ntk_diagonal", "forward"]


@pytest.fixture(scope="module")
def target(tmp_path_factory, exported):
    folder = tmp_path_factory.mktemp("served")
    with serving_target.running(folder, exported("cnn").path) as target:
        yield target
        target.channel.close()


@pytest.fixture
def labelled(target):
    if not target.labelled:
        pytest.skip("a running server has not the versions that the test is about")
    return target.labelled


@pytest.fixture
def swap(target):
    """The base directory of the model "swap"; its versions after the test are as before."""
    if not target.swap:
        pytest.skip("a running server's versions are not the test's to change")
    yield target.swap
    for path in target.swap.iterdir():
        if path.name != "1":
            shutil.rmtree(path)
    serving_target.wait_for(lambda: served(target, "swap") == [1])


def served(target, model):
    return [version for version, (state, *_) in target.status(model).items() if state == "AVAILABLE"]


def large_inputs(signature):
    """Zeros for each input of a signature, more of them than gRPC's default limit of 4 MiB."""
    shapes = {name: [dim.size for dim in info.tensor_shape.dim[1:]] for name, info in signature.inputs.items()}
    dtypes = {name: tf.dtypes.as_dtype(info.dtype).as_numpy_dtype for name, info in signature.inputs.items()}
    count = 1 + max(5_000_000 // int(4 * np.prod(shape)) for shape in shapes.values())
    return {name: np.zeros((count, *shape), dtypes[name]) for name, shape in shapes.items()}


def scale(target, model, **version):
    """Which version answers, by its numbers, and which it says it is."""
    response, outputs = target.predict(model, "forward", x=X, **version)
    expected = serving_models.forward(X, 1)
    np.testing.assert_allclose(outputs["output"], expected * outputs["output"][0, 0] / expected[0, 0], rtol=1e-6)
    return round(float(outputs["output"][0, 0] / expected[0, 0])), response.model_spec.version.value


# --------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("name", SIGNATURES)
def test_grpc_rest_and_the_saved_model_itself_give_the_same_numbers(target, name):
    _, signatures = target.metadata(target.model)
    if name not in signatures:
        pytest.skip(f"the served model has no signature {name}")
    inputs = serving_target.random_inputs(signatures[name], seed=len(name))
    _, outputs = target.predict(target.model, name, **inputs)
    assert set(outputs) == set(signatures[name].outputs)
    body = {"signature_name": name, "inputs": {alias: array.tolist() for alias, array in inputs.items()}}
    status, answer = target.rest("POST", f"/v1/models/{target.model}:predict", body)
    assert status == 200, answer
    columns = answer["outputs"] if len(outputs) > 1 else dict.fromkeys(outputs, answer["outputs"])
    for alias, array in outputs.items():
        np.testing.assert_array_equal(np.array(columns[alias], array.dtype), array)
    if target.loaded:
        expected = target.loaded.signatures[name](**{alias: tf.constant(array) for alias, array in inputs.items()})
        for alias, array in outputs.items():
            np.testing.assert_allclose(array, expected[alias].numpy(), rtol=1e-5, atol=1e-5)


def test_every_signature_answers_after_the_manifest_was_asked_for(target):
    """A text, over both protocols: a server whose flags are wrong ends, or answers noise from then on."""
    _, signatures = target.metadata(target.model)
    names = sorted((name for name in signatures if not name.startswith("__")), key=lambda name: name != "ntk_manifest")
    assert names[0] == "ntk_manifest", "it should serve an exported kernel"
    for name in names:
        inputs = serving_target.random_inputs(signatures[name], seed=0)
        response, outputs = target.predict(target.model, name, **inputs)
        assert not any(proto.tensor_content for proto in response.outputs.values())
        body = {"signature_name": name, "inputs": {alias: as_json(array) for alias, array in inputs.items()}}
        status, answer = target.rest("POST", f"/v1/models/{target.model}:predict", body)
        assert status == 200, answer
        ((_, array),) = outputs.items()
        if array.dtype == object:
            assert answer["outputs"] == array.item().decode()
        else:
            np.testing.assert_array_equal(np.array(answer["outputs"], array.dtype), array)
            assert np.any(array)


def as_json(array):
    return array.item().decode() if array.dtype == object else array.tolist()


@pytest.mark.parametrize("name", ["ntk_diagonal", "forward"])
def test_rows_are_the_columns_transposed(target, name):
    _, signatures = target.metadata(target.model)
    inputs = serving_target.random_inputs(signatures[name], seed=1)
    rows = [{alias: array[i].tolist() for alias, array in inputs.items()} for i in range(2)]
    path = f"/v1/models/{target.model}:predict"
    status, by_rows = target.rest("POST", path, {"signature_name": name, "instances": rows})
    assert status == 200, by_rows
    columns = {alias: array.tolist() for alias, array in inputs.items()}
    _, by_columns = target.rest("POST", path, {"signature_name": name, "inputs": columns})
    assert by_rows["predictions"] == by_columns["outputs"]


def test_each_client_gets_its_own_rows(target):
    _, signatures = target.metadata(target.model)
    requests = [serving_target.random_inputs(signatures["ntk_diagonal"], seed) for seed in range(8)]
    expected = [target.predict(target.model, "ntk_diagonal", **inputs)[1]["ntk"] for inputs in requests]

    def ask(number):
        return number, target.predict(target.model, "ntk_diagonal", **requests[number])[1]["ntk"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number, answer in pool.map(ask, list(range(8)) * 6):
            np.testing.assert_allclose(answer, expected[number], rtol=1e-5)


def test_only_the_outputs_asked_for_are_answered(target):
    _, signatures = target.metadata(target.model)
    inputs = serving_target.random_inputs(signatures["forward"], seed=2)
    request = serving_models.predict_request(target.model, "forward", outputs=("output",), **inputs)
    assert set(target.send(request).outputs) == {"output"}


def test_texts_over_both_protocols(target):
    if not target.words:
        pytest.skip("a running server has not the model that the test is about")
    texts, places, upper = [["ä", "?"], ["b", ""]], [[2, -1], [1, -1]], [["Ä", "?"], ["B", ""]]
    _, outputs = target.predict(target.words, "serving_default", words=np.array(texts))
    assert outputs["place"].tolist() == places
    assert [[text.decode() for text in row] for row in outputs["upper_bytes"]] == upper
    encoded = [[{"b64": base64.b64encode(text.encode()).decode()} for text in row] for row in texts]
    in_base64 = [[{"b64": base64.b64encode(text.encode()).decode()} for text in row] for row in upper]
    for given in (texts, encoded):
        status, answer = target.rest("POST", f"/v1/models/{target.words}:predict", {"inputs": given})
        assert (status, answer) == (200, {"outputs": {"place": places, "upper_bytes": in_base64}})
        rows = {"instances": [{"words": row} for row in given]}
        status, answer = target.rest("POST", f"/v1/models/{target.words}:predict", rows)
        assert status == 200, answer
        assert [row["place"] for row in answer["predictions"]] == places
    for address in (target.grpc_address, f"http://{target.rest_address}"):
        with serving.Client(address, model=target.words) as client:
            assert client.predict("serving_default", {"words": np.array(texts)})["place"].tolist() == places
            np.testing.assert_array_equal(client.forward(np.array(texts)), [[1.0], [1.0]])


# -------------------------------------------------------------------------------------------- metadata, status, health


def test_metadata_is_the_same_over_both_protocols(target):
    spec, signatures = target.metadata(target.model)
    status, answer = target.rest("GET", f"/v1/models/{target.model}/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": target.model, "signature_name": "", "version": str(spec.version.value)}
    shown = answer["metadata"]["signature_def"]["signature_def"]
    assert set(shown) == set(signatures) >= {"serving_default"}
    for name, signature in signatures.items():
        assert set(shown[name]["inputs"]) == set(signature.inputs)
        for alias, info in signature.outputs.items():
            sizes = [int(dim["size"]) for dim in shown[name]["outputs"][alias]["tensor_shape"]["dim"]]
            assert sizes == [dim.size for dim in info.tensor_shape.dim]


def test_status_is_the_same_over_both_protocols(target):
    states = target.status(target.model)
    assert ("AVAILABLE", 0, "") in states.values()
    status, answer = target.rest("GET", f"/v1/models/{target.model}")
    assert status == 200
    assert {int(one["version"]): one["state"] for one in answer["model_version_status"]} == {
        version: state for version, (state, *_) in states.items()
    }


def test_a_call_that_is_not_of_this_api_is_unimplemented(target):
    with pytest.raises(grpc.RpcError) as error:
        target.channel.unary_unary("/tensorflow.serving.PredictionService/Nothing")(b"", timeout=serving_target.SECONDS)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ------------------------------------------------------------------------------------------------ versions and labels


def test_versions_and_labels(target, labelled):
    assert served(target, labelled) == [2, 1]
    assert scale(target, labelled) == (2, 2)
    assert scale(target, labelled, version=1) == (1, 1)
    assert scale(target, labelled, label="stable") == (1, 1)
    assert scale(target, labelled, label="canary") == (2, 2)
    for place, expected in (("versions/1", 1), ("labels/stable", 1), ("labels/canary", 2)):
        body = {"signature_name": "forward", "instances": X.tolist()}
        status, answer = target.rest("POST", f"/v1/models/{labelled}/{place}:predict", body)
        assert status == 200
        np.testing.assert_allclose(answer["predictions"], serving_models.forward(X, expected), rtol=1e-6)


def test_the_newest_version_takes_over_without_a_failed_request(target, swap):
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(scale(target, "swap"))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        try:
            for version in (2, 3):
                serving_models.save_version(swap, version, version)
                serving_target.wait_for(lambda version=version: answers and answers[-1] == (version, version))
                serving_target.wait_for(lambda version=version: served(target, "swap") == [version])
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert set(answers) == {(1, 1), (2, 2), (3, 3)}, "every answer is of one version, which is the one that it names"
    newest = [version for version, _ in itertools.groupby(version for _, version in answers)]
    assert newest[0] == 1
    assert newest[-1] == 3
    with pytest.raises(grpc.RpcError) as error:
        target.predict("swap", "forward", version=1, x=X)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_version_that_does_not_load_leaves_the_previous_one(target, swap):
    (swap / "7").mkdir()
    (swap / "7" / "saved_model.pb").write_bytes(b"not a SavedModel")
    serving_target.wait_for(lambda: target.status("swap").get(7, ("",))[0] == "END")
    _, code, message = target.status("swap")[7]
    assert code
    assert message
    assert scale(target, "swap") == (1, 1)


def test_a_version_whose_warmup_fails_leaves_the_previous_one(target, swap):
    record = serving_models.warmup_record("forward", y=X)
    serving_models.save_version(swap, 8, 8, warmup=[record])
    serving_target.wait_for(lambda: target.status("swap").get(8, ("",))[0] == "END")
    assert target.status("swap")[8][1]
    assert scale(target, "swap") == (1, 1)


def test_directories_that_are_no_versions_are_ignored(target, swap):
    for name in ("latest", ".tmp", "x9"):
        (swap / name).mkdir()
    serving_models.save_version(swap, 9, 9, warmup=[serving_models.warmup_record("forward", x=X)])
    serving_target.wait_for(lambda: served(target, "swap") == [9])
    assert scale(target, "swap") == (9, 9)


# ------------------------------------------------------------------------------------------------ what clients do wrong


def test_an_expired_deadline_is_told_and_harms_nobody(target):
    _, signatures = target.metadata(target.model)
    with pytest.raises(grpc.RpcError) as error:
        target.predict(target.model, "forward", timeout=1e-3, **large_inputs(signatures["forward"]))
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    target.predict(target.model, "forward", **serving_target.random_inputs(signatures["forward"], seed=3))


def test_a_cancelled_request_harms_nobody(target):
    _, signatures = target.metadata(target.model)
    inputs = serving_target.random_inputs(signatures["ntk"], seed=4)
    request = serving_models.predict_request(target.model, "ntk", **inputs)
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(target.channel)
    for _ in range(5):
        stub.Predict.future(request).cancel()
    target.predict(target.model, "ntk", **inputs)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/models/{model}:predict", b"{", 400),
        ("POST", "/v1/models/{model}:predict", b"\x00\x01\x02", 400),
        ("POST", "/v1/models/{model}:predict?x=1", b"{}", 400),
        ("POST", "/v1/models/nobody:predict", b'{"inputs": 1}', 404),
        ("POST", "/v1/models/{model}/versions/99999:predict", b'{"inputs": 1}', 404),
        ("POST", "/v1/models/{model}/versions/99999999999999999999:predict", b'{"inputs": 1}', 400),
        ("POST", "/v1/models/{model}/labels/nobody:predict", b'{"inputs": 1}', 400),
        ("GET", "/v1/models/%2e%2e%2fetc", None, 404),
        ("GET", "/v1/models/../{model}", None, 400),
        ("PATCH", "/v1/models/{model}:predict", b"{}", 400),
        ("GET", "/etc/passwd", None, 404),
    ],
)
def test_wrong_rest_requests(target, method, path, body, status):
    received, answer = target.rest(method, path.format(model=target.model), body)
    assert received == status, answer
    if path.startswith("/v1/"):
        unreadable = not answer and "99999999999999999999" in path  # on which TF Serving has no words
        assert unreadable or set(answer) == {"error"}


def test_the_kind_of_content_does_not_matter(target):
    _, signatures = target.metadata(target.model)
    inputs = serving_target.random_inputs(signatures["forward"], seed=5)
    body = {"signature_name": "forward", "inputs": {alias: array.tolist() for alias, array in inputs.items()}}
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        status, _ = target.rest("POST", f"/v1/models/{target.model}:predict", json.dumps(body).encode(), headers)
        assert status == 200


def test_large_messages_both_ways(target):
    _, signatures = target.metadata(target.model)
    inputs = large_inputs(signatures["forward"])
    _, outputs = target.predict(target.model, "forward", **inputs)
    assert {len(array) for array in inputs.values()} == {len(outputs["output"])}
