import json
import shlex

import pytest

from serving.start.example_request import curl_line


def metadata(**signatures):
    """Metadata as REST shows them, of signatures given as {name: {input: (dtype, shape)}}."""
    return {
        "model_spec": {"name": "m", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    name: {
                        "inputs": {
                            alias: {
                                "dtype": dtype,
                                "tensor_shape": {"dim": [{"size": str(size)} for size in shape], "unknown_rank": False},
                            }
                            for alias, (dtype, shape) in inputs.items()
                        }
                    }
                    for name, inputs in signatures.items()
                }
            }
        },
    }


IMAGES = {"x": ("DT_FLOAT", (-1, 2, 3))}


def test_a_kernel_of_zeros():
    line = curl_line("host:1", "m", metadata(forward=IMAGES, ntk_diagonal=IMAGES, serving_default={}))
    command = shlex.split(line)
    assert command[:3] == ["curl", "-s", "-d"]
    assert json.loads(command[3]) == {"signature_name": "ntk_diagonal", "inputs": [[[0, 0, 0], [0, 0, 0]]]}
    assert command[4] == "http://host:1/v1/models/m:predict"


def test_several_inputs():
    two = {"x_b": ("DT_INT32", (-1,)), "x_a": ("DT_FLOAT", (-1, 1))}
    line = curl_line("host:1", "m", metadata(serving_default=two))
    assert json.loads(shlex.split(line)[3])["inputs"] == {"x_a": [[0]], "x_b": [0]}


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": ("DT_FLOAT", (-1, 224, 224, 3))},
        {"x": ("DT_FLOAT", (-1, 10**9))},
        {"x": ("DT_STRING", (-1, 2))},
        {"x": ("DT_FLOAT", (-1, -1))},
    ],
)
def test_inputs_that_do_not_fit_a_command_line(inputs):
    assert curl_line("host:1", "m", metadata(ntk_diagonal=inputs)) == "curl -s http://host:1/v1/models/m/metadata"


def test_no_signature_that_is_known():
    assert curl_line("host:1", "m", metadata(other=IMAGES)) == "curl -s http://host:1/v1/models/m/metadata"
