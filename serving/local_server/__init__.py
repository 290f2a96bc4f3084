"""An embedded server of TF Serving's API, for where there is no tensorflow_model_server: models in, two ports out.

    gRPC ── grpc_server ─────────────► service ──► admission ──► models ──► manager ──► servable (a TF session)
    REST ── rest_server ── rest_api ──►   │        a place to compute       one model    one version
                                          ├── predict (tensors, json_document, json_tensors)
                                          └── batching: joins requests to versions that allow it

`options` and `model_config` say what to serve; `versions` which directories are versions, `warmup` replays their warmup
requests; `metrics` counts. It alone knows TF Serving's rules for requests and its messages, to which the recorded
answers of the real server hold it.
"""

from serving.local_server.options import ModelOptions, ServerOptions
from serving.local_server.server import LocalServer

__all__ = ["LocalServer", "ModelOptions", "ServerOptions"]
