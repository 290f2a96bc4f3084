"""The command line of TF Serving's tensorflow_model_server that an exported kernel needs, and why."""

from __future__ import annotations

import dataclasses
import os

GRPC_PORT, REST_PORT = 8500, 8501
IMAGE = "tensorflow/serving:2.20.0"
_RETRY_MICROSECONDS = 5_000_000

TENSOR_CONTENT = "enable_serialization_as_tensor_content"
# Flags that no server of an export may have, and what they do there (found with TF Serving 2.20).
HARMFUL = {
    TENSOR_CONTENT: (
        "answers REST requests for numbers with zeros and noise, ends with a segmentation fault at those for texts "
        "(ntk_manifest), and writes texts over gRPC so that clients cannot read them"
    )
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of tensorflow_model_server; `str` is how it is written, `reason` says why it is there."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        """--name=value."""
        return f"--{self.name}={self.value}"


def session_config(threads: int | None = None) -> str:
    """The tensorflow.ConfigProto of a server's sessions, in text format, for --tensorflow_session_config_file.

    The optimizers that it switches off look at the whole function library once for each signature, which takes most of
    the time until a version is available; what an export computes is XLA's to optimize.

    Args:
      threads: as of `model_server_flags`, for servers which take the file for all that is to be said on sessions.
    """
    lines = ["graph_options { rewrite_options { disable_meta_optimizer: true } }"]
    if threads is not None:
        lines += [f"{kind}_op_parallelism_threads: {threads}" for kind in ("intra", "inter")]
    return "\n".join([*lines, ""])


def model_server_flags(
    *,
    model_base_path: str | os.PathLike[str] | None = None,
    model_name: str = "default",
    model_config_file: str | os.PathLike[str] | None = None,
    port: int = GRPC_PORT,
    rest_api_port: int = REST_PORT,
    gpu: bool = False,
    threads: int | None = None,
    grpc_max_threads: int = 64,
    rest_timeout_seconds: float = 600.0,
    session_config_file: str | os.PathLike[str] | None = None,
    monitoring_config_file: str | os.PathLike[str] | None = None,
    batching_parameters_file: str | os.PathLike[str] | None = None,
) -> tuple[Flag, ...]:
    """The flags to serve exported kernels with.

    Args:
      model_base_path: a model base directory; or else
      model_config_file: a ModelServerConfig in text format, which names models, versions and labels.
      model_name: of the model in `model_base_path`.
      port: of gRPC; 0 for none.
      rest_api_port: of REST; 0 for none.
      gpu: whether the server has GPUs.
      threads: for the computation; None leaves it to the server, which takes all cores.
      grpc_max_threads: how many gRPC requests there can be at the same time.
      rest_timeout_seconds: longest time until the answer to a REST request.
      session_config_file: what `session_config` returns, as a file; without it the server starts in twice the time.
      monitoring_config_file: a MonitoringConfig in text format.
      batching_parameters_file: the thread pool of batching; batches only models that have batching parameters of their
        own beside their saved_model.pb, because joining requests of a kernel mixes their rows.

    Raises:
      ValueError: unless exactly one of `model_base_path` and `model_config_file` is given.
    """
    if (model_base_path is None) == (model_config_file is None):
        raise ValueError(
            "expected either model_base_path or model_config_file, received "
            + ("neither" if model_base_path is None else "both")
        )

    def flag(name: str, value: object, reason: str) -> Flag:
        return Flag(name, str(value).lower() if isinstance(value, bool) else str(value), reason)

    flags = [
        flag("port", port, "gRPC"),
        flag("rest_api_port", rest_api_port, "REST, and the metrics"),
        flag("xla_cpu_compilation_enabled", True, "without it every request fails, warmup included, and so the load"),
    ]
    if gpu:
        flags.append(flag("xla_gpu_compilation_enabled", True, "the same on GPUs"))
    if model_config_file is None:
        flags += [
            flag("model_name", model_name, "by which clients ask for it"),
            flag("model_base_path", model_base_path, "the newest of its versions is served"),
        ]
    else:
        flags += [
            flag("model_config_file", model_config_file, "models, versions and labels"),
            flag("allow_version_labels_for_unavailable_models", True, "at the start nothing is available yet"),
        ]
    flags += [
        flag("grpc_max_threads", grpc_max_threads, "one more request is refused; the default is 4 for each core"),
        flag("rest_api_timeout_in_ms", round(rest_timeout_seconds * 1000), "large kernels take longer than 30 s"),
        flag("num_load_threads", 1, "loading a version does not delay requests"),
        flag("num_unload_threads", 1, "freeing a version does not delay requests"),
        flag("load_retry_interval_micros", _RETRY_MICROSECONDS, "a version that fails is given up in 25 s, not 5 min"),
    ]
    if threads is not None:
        flags += [
            flag("tensorflow_intra_op_parallelism", threads, "threads of one operation"),
            flag("tensorflow_inter_op_parallelism", threads, "operations at the same time"),
        ]
    if session_config_file is not None:
        flags.append(flag("tensorflow_session_config_file", session_config_file, "twice as fast a start"))
    if monitoring_config_file is not None:
        flags.append(flag("monitoring_config_file", monitoring_config_file, "metrics for Prometheus"))
    if batching_parameters_file is not None:
        flags += [
            flag("enable_batching", True, "of the models that have batching parameters of their own, and no others"),
            flag("enable_per_model_batching_parameters", True, "joining requests of a kernel would mix their rows"),
            flag("batching_parameters_file", batching_parameters_file, "the thread pool that batches share"),
        ]
    return tuple(flags)
