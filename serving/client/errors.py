"""The error that a user of the client sees: what a server answered, and what to do about it."""

from __future__ import annotations

import re

from serving.shared.model_server import HARMFUL, TENSOR_CONTENT


class ServingError(Exception):
    """A request that has no result.

    Attributes:
      code: gRPC's name for the kind of error, also over REST: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE,
        RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, FAILED_PRECONDITION, INTERNAL, ...
      answer: the server's own words; empty if the client refused the request itself.
    """

    def __init__(self, message: str, code: str, answer: str = "") -> None:
        """An error of a kind, with the text to show."""
        super().__init__(message)
        self.code = code
        self.answer = answer


BATCHING_CURE = (
    "The server joins requests of several callers (--enable_batching), which kernels of pairs do not survive. "
    "Start it without that flag, or with --enable_per_model_batching_parameters too (ntk-bundle --batching)"
)

TENSOR_CONTENT_CURE = (
    f"A server with --{TENSOR_CONTENT} {HARMFUL[TENSOR_CONTENT]}. "
    "Start it without that flag: ntk-serve and the files of ntk-bundle do not have it"
)

_TOO_LARGE = r"([Mm]essage|body) larger than"
_OUT_OF_MEMORY = r"\bOOM\b|out of memory|allocating"

# (codes, words in the server's answer, cure); the first that fits.
_CURES: tuple[tuple[set[str], str, str], ...] = (
    (
        set(),
        r"XLA compilation disabled|xla_(cpu|gpu)_compilation_enabled",
        "Start the server with --xla_cpu_compilation_enabled=true (on a GPU --xla_gpu_compilation_enabled=true); "
        "ntk-serve and the flags that ntk-bundle writes have it",
    ),
    (set(), TENSOR_CONTENT, TENSOR_CONTENT_CURE),
    ({"INVALID_ARGUMENT", "FAILED_PRECONDITION"}, r"Batching Run\(\)|Batched output tensor", BATCHING_CURE),
    (
        {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "OUT_OF_RANGE"},
        _TOO_LARGE,
        "Lower Client(message_limit=...) to at most what the server accepts, so that requests are split further",
    ),
    (
        {"RESOURCE_EXHAUSTED"},
        _OUT_OF_MEMORY,
        "The server ran out of memory: lower Client(message_limit=...) or Client(concurrency=...), or export with a "
        "smaller export.memory_budget",
    ),
    (
        {"RESOURCE_EXHAUSTED", "UNAVAILABLE"},
        r"[Tt]hread ?pool|exhausted|queue|concurren",
        "The server is busy: lower Client(concurrency=...), raise its --grpc_max_threads, or wait longer with "
        "Client(deadline=...)",
    ),
    (
        {"DEADLINE_EXCEEDED"},
        "",
        "Raise Client(deadline=...), or lower Client(message_limit=...) so that each request does less; the first "
        "request of each kind compiles it unless the export has warmup requests",
    ),
    (
        {"UNAVAILABLE"},
        "",
        "Is it running there? ntk-serve --model_base_path=DIR starts one and prints its addresses; "
        "Client.wait_until_ready() waits for one that starts",
    ),
    (
        {"NOT_FOUND"},
        "",
        "The name is the server's --model_name (or that of its model config), the version a directory of its base path",
    ),
    (
        {"UNIMPLEMENTED"},
        "",
        "Is that TF Serving's gRPC port? REST addresses begin with http://",
    ),
)


def explain(code: str, answer: str, *, address: str, about: str) -> ServingError:
    """The error for what a server answered.

    Args:
      code: gRPC's name for it.
      answer: the server's words.
      address: of the server.
      about: what was asked for: "model 'ntk' signature 'forward'".
    """
    words = tidy(answer)
    cure = next((c for codes, text, c in _CURES if (not codes or code in codes) and re.search(text, answer)), "")
    message = f"{code} from {address} for {about}: {words or 'no message'}"
    return ServingError(f"{message}. {cure}." if cure else message, code, answer)


def closed(address: str) -> ServingError:
    """The error for a request by a client that was closed."""
    return ServingError(f"The client of {address} was closed; make another.", "FAILED_PRECONDITION")


def tidy(answer: str) -> str:
    """The sentence of a server's answer that says what is wrong.

    Assertions of an exported model are unwrapped ("assertion failed: [x: expected float32 (n, 4), received] [2 2]" and
    the nodes after it); of other long texts, such as pages of MLIR, the first line is kept.
    """
    found = re.search(r"assertion failed: \[(.*?)\] ?(\[[^\]]*\])", answer, re.DOTALL)
    if found:
        words = re.sub(r"\] \[", " ", found[1])
        return f"{words} {_shape(found[2])}"
    line = answer.strip().split("\n", 1)[0].strip()
    return line if len(line) <= 500 else f"{line[:500]}..."


def _shape(numbers: str) -> str:
    """'[2 2]' as (2, 2)."""
    sizes = numbers.strip("[]").split()
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def largest_batch(error: ServingError) -> int | None:
    """How many examples a server that joins requests takes in one, if one with more was refused."""
    found = re.search(r"Task size \d+ is larger than maximum input batch size (\d+)", error.answer)
    return int(found[1]) if found else None


def is_transient(error: ServingError) -> bool:
    """Whether the same request may succeed a little later; all requests of this client may be sent twice."""
    if error.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"):  # the last is of a server that stops
        return False
    return not re.search(rf"{_TOO_LARGE}|{_OUT_OF_MEMORY}|XLA", error.answer)
