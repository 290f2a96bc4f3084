import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2

from serving.shared.model_server import HARMFUL, model_server_flags, session_config


def test_the_flags_of_a_model():
    flags = model_server_flags(model_base_path="/models/digits", model_name="digits", port=1, rest_api_port=2)
    written = [str(flag) for flag in flags]
    for expected in (
        "--port=1",
        "--rest_api_port=2",
        "--model_name=digits",
        "--model_base_path=/models/digits",
        "--xla_cpu_compilation_enabled=true",
        "--grpc_max_threads=64",
        "--rest_api_timeout_in_ms=600000",
    ):
        assert expected in written
    assert not any("gpu" in flag or "batching" in flag or "config_file" in flag for flag in written)
    assert all(flag.reason for flag in flags)
    assert not {flag.name for flag in flags} & HARMFUL.keys()


@pytest.mark.parametrize("threads", [None, 3])
def test_the_session_config_is_tensorflows(threads):
    config = text_format.Parse(session_config(threads), config_pb2.ConfigProto())
    assert config.graph_options.rewrite_options.disable_meta_optimizer
    assert config.intra_op_parallelism_threads == config.inter_op_parallelism_threads == (threads or 0)


def test_the_flags_of_a_config_file():
    written = [str(flag) for flag in model_server_flags(model_config_file="/models.config")]
    assert "--model_config_file=/models.config" in written
    assert "--allow_version_labels_for_unavailable_models=true" in written
    assert not any(flag.startswith(("--model_name", "--model_base_path")) for flag in written)


def test_what_a_deployment_may_add():
    flags = model_server_flags(
        model_base_path="/m", gpu=True, threads=3, monitoring_config_file="/mon", batching_parameters_file="/batch"
    )
    assert {
        "--xla_gpu_compilation_enabled=true",
        "--tensorflow_intra_op_parallelism=3",
        "--tensorflow_inter_op_parallelism=3",
        "--monitoring_config_file=/mon",
        "--enable_batching=true",
        "--enable_per_model_batching_parameters=true",
        "--batching_parameters_file=/batch",
    } <= {str(flag) for flag in flags}
    assert len({flag.name for flag in flags}) == len(flags)


@pytest.mark.parametrize(
    ("given", "received"), [({}, "neither"), ({"model_base_path": "/m", "model_config_file": "/c"}, "both")]
)
def test_either_a_model_or_a_config_file(given, received):
    with pytest.raises(ValueError, match=f"received {received}"):
        model_server_flags(**given)
