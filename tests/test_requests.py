"""requests against a real server: upstream's span, and what we add to it."""

import dataclasses
import http.server
import inspect
import os
import pickle
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from opentelemetry import trace
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from stagewatch import recording, safety, stages
from stagewatch.instrumentation import _base
from stagewatch.instrumentation import requests as watched_requests
from stagewatch.instrumentation.requests import RequestsInstrumentor
from stagewatch.records import OperationEnded, StageEnded
from tests.interrupted import everywhere
from tests.recorded import Recorded


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    failures = 0

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if path == "/flaky" and type(self).failures:
            type(self).failures -= 1
            return self._answer(503, b"")
        if path == "/moved":
            return self._answer(302, b"", Location="/ok?secret=moved")
        if path == "/boasts":
            self.send_response(200)
            self.send_header("Content-Length", "9" * 30)
            return self.end_headers()
        if path == "/cut":
            self.close_connection = True
            self.connection.close()
            return None
        if path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n0\r\n\r\n")
            return None
        return self._answer(
            404 if path == "/nothing" else 503 if path == "/down" else 200, b"hello"
        )

    do_POST = do_GET

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(200, b"hello")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Base URL of a server on a free port of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join(timeout=10)


@pytest.fixture
def watched(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> Iterator[RequestsInstrumentor]:
    """requests, patched, with spans that go to the recording."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorded.provider)
    before = safety.swallowed
    ours = RequestsInstrumentor()
    ours.instrument()
    yield ours
    if ours.is_instrumented_by_opentelemetry:
        ours.uninstrument()
    assert safety.swallowed == before


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Tries again three times on 503, at once."""
    with requests.Session() as session:
        retry = Retry(total=3, status_forcelist=[503], backoff_factor=0, raise_on_status=True)
        session.mount("http://", HTTPAdapter(max_retries=retry))
        yield session


def _operations(recorded: Recorded) -> list[tuple[str, str, str | None]]:
    return [(o.stage, o.name, o.error_type) for o in recorded.of(OperationEnded)]


def _written(recorded: Recorded) -> bytes:
    return b"".join(
        path.read_bytes() for path in sorted(recorded.directory.iterdir()) if path.is_file()
    )


def test_a_request_is_one_span_with_stable_names(
    server: str, recorded: Recorded, watched: RequestsInstrumentor
) -> None:
    """Exactly these attributes; the query string is nowhere; one operation is counted."""
    port = int(server.rpartition(":")[2])
    answer = requests.post(f"{server}/ok?token=secret#secret", data=b"body", timeout=10)
    assert answer.text == "hello"
    (span,) = recorded.spans()
    attributes = dict(span.attributes or {})
    assert attributes.pop("user_agent.original", "").startswith("python-requests")
    assert (span.name, attributes) == (
        "POST",
        {
            "http.request.method": "POST",
            "url.full": f"{server}/ok",
            "server.address": "127.0.0.1",
            "server.port": port,
            "network.peer.address": "127.0.0.1",
            "network.peer.port": port,
            "network.protocol.version": "1.1",
            "http.response.status_code": 200,
            "http.request.body.size": 4,
            "http.response.body.size": 5,
        },
    )
    assert _operations(recorded) == [("", "requests.POST", None)]
    assert b"secret" not in _written(recorded)


def test_a_retry_is_counted(
    server: str, recorded: Recorded, watched: RequestsInstrumentor, session: requests.Session
) -> None:
    """503, then 200: one span, one operation, one retry of the stage."""
    _Handler.failures = 1
    with stages.stage("extract"):
        assert session.get(f"{server}/flaky?secret=1", timeout=10).status_code == 200
    http_span = recorded.spans()[0]
    assert (http_span.attributes or {})["http.request.resend_count"] == 1
    assert recorded.tree() == [{"extract": [{"GET": []}]}]
    assert _operations(recorded) == [("extract", "requests.GET", None)]
    (stage,) = [s for s in recorded.records() if type(s).__name__ == "StageEnded"]
    assert stage.retries == 1
    assert b"secret" not in _written(recorded)


def test_giving_up_counts_what_was_tried(
    server: str, recorded: Recorded, watched: RequestsInstrumentor, session: requests.Session
) -> None:
    """Three retries, then the error requests raises without us."""
    with pytest.raises(requests.exceptions.RetryError):
        session.get(f"{server}/down?secret=1", timeout=10)
    (span,) = recorded.spans()
    assert (span.attributes or {})["http.request.resend_count"] == 3
    assert _operations(recorded) == [("", "requests.GET", "requests.exceptions.RetryError")]
    assert recording.active is not None
    assert recording.active.without_stage.retries == 3


def test_bytes_count_for_the_stage(
    server: str, recorded: Recorded, watched: RequestsInstrumentor
) -> None:
    """Bodies of answers and requests, of errors and redirects too; none where there is no body."""
    with stages.stage("extract"):
        requests.post(f"{server}/ok", data=b"body", timeout=10)
        requests.get(f"{server}/nothing", timeout=10)
        requests.get(f"{server}/moved", timeout=10)
        requests.get(f"{server}/chunked", timeout=10)
        assert requests.head(f"{server}/ok", timeout=10).headers["Content-Length"] == "5"
    (stage,) = recorded.of(StageEnded)
    assert (stage.bytes_in, stage.bytes_out) == (5 + 5 + 5 + 3, 4)
    head = recorded.spans()[-2]
    assert (head.name, (head.attributes or {})["http.response.body.size"]) == ("HEAD", 0)


def test_a_length_nobody_can_count_is_unknown(
    server: str, watched: RequestsInstrumentor, recorded: Recorded
) -> None:
    """A header out of all bounds costs the stage none of what it counted."""
    with stages.stage("load") as opened:
        opened.records(out=5)
        requests.get(f"{server}/boasts", stream=True, timeout=10).close()
    (ended,) = recorded.of(StageEnded)
    assert (ended.records_out, ended.bytes_in) == (5, 0)


def test_messages_of_errors_have_no_query_string(
    server: str, recorded: Recorded, watched: RequestsInstrumentor, session: requests.Session
) -> None:
    """urllib3 puts the whole target into its message, unquoted."""
    with pytest.raises(requests.exceptions.RetryError):
        session.get(f"{server}/down?secret=1", timeout=10)
    assert b"secret" not in _written(recorded)


def test_statuses_of_errors_are_error_types(
    server: str, recorded: Recorded, watched: RequestsInstrumentor
) -> None:
    """Of the operation; the method is one of a closed set."""
    assert requests.get(f"{server}/nothing", timeout=10).status_code == 404
    requests.request("BREW", f"{server}/ok", timeout=10)
    assert _operations(recorded) == [("", "requests.GET", "404"), ("", "requests.OTHER", "501")]


def test_a_redirect_is_one_operation(
    server: str, recorded: Recorded, watched: RequestsInstrumentor
) -> None:
    """And one span."""
    assert len(requests.get(f"{server}/moved?secret=1", timeout=10).history) == 1
    assert _operations(recorded) == [("", "requests.GET", None)]
    assert recorded.tree() == [{"GET": []}]
    assert b"secret" not in _written(recorded)


def test_a_stream_is_not_read(
    server: str, recorded: Recorded, watched: RequestsInstrumentor
) -> None:
    """Its size is that of the header, or unknown; the user reads it."""
    with requests.get(f"{server}/ok", stream=True, timeout=10) as answer:
        assert not answer._content_consumed  # type: ignore[attr-defined]
        assert answer.raw.read() == b"hello"
    with requests.get(f"{server}/chunked", stream=True, timeout=10) as answer:
        assert b"".join(answer.iter_content(2)) == b"abc"
    assert requests.get(f"{server}/chunked", timeout=10).content == b"abc"
    sizes = [(s.attributes or {}).get("http.response.body.size") for s in recorded.spans()]
    assert sizes == [5, None, 3]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x?secret=1", "no-url", "{server}/cut"])
def test_errors_are_untouched(
    server: str, recorded: Recorded, watched: RequestsInstrumentor, url: str
) -> None:
    """Type and the functions of the traceback, upstream's frames not among them."""
    ours = _failure(url.format(server=server))
    watched.uninstrument()
    assert ours == _failure(url.format(server=server))


@dataclasses.dataclass(frozen=True)
class _Frozen(Exception):
    url: str


def test_a_frozen_exception_comes_through() -> None:
    """Frames are taken out of its traceback without asking it."""

    def fail(url: str) -> None:
        raise _Frozen(url)

    with pytest.raises(_Frozen) as caught:
        watched_requests._send(fail)("u")
    assert [entry.name for entry in caught.traceback][1:] == ["fail"]


@pytest.mark.usefixtures("watched")
def test_a_signal_at_any_moment_ends_the_request(server: str, recorded: Recorded) -> None:
    """What the user's handler raises comes through, and later requests are seen as before."""
    ours = {_base.UNSEEN, watched_requests.__file__ or ""}
    for point in everywhere(lambda: requests.get(f"{server}/ok", timeout=10), ours):
        before = len(_operations(recorded))
        requests.get(f"{server}/ok", timeout=10)
        assert len(_operations(recorded)) == before + 1, point


def _failure(url: str) -> Any:
    try:
        requests.get(url, timeout=10)
    except Exception as error:
        chain: list[Any] = []
        found: BaseException | None = error
        while found is not None:
            frames = traceback.extract_tb(found.__traceback__)
            chain.append((type(found), [(f.filename, f.name) for f in frames]))
            found = found.__cause__ or found.__context__
        return chain
    raise AssertionError("it did not fail")


def test_functions_look_as_before_and_are_restored(server: str) -> None:
    """Signature, names, pickling; after `uninstrument` the very same objects."""
    names = (
        (requests.Session, "send"),
        (requests.Session, "request"),
        (Retry, "increment"),
    )
    before = [vars(owner)[name] for owner, name in names]
    ours = RequestsInstrumentor()
    ours.instrument()
    try:
        for (owner, name), original in zip(names, before, strict=True):
            wrapper = vars(owner)[name]
            assert inspect.signature(wrapper) == inspect.signature(original)
            assert wrapper.__qualname__ == original.__qualname__
            assert pickle.loads(pickle.dumps(wrapper)) is wrapper
        assert requests.Session.send is not before[0]
        assert requests.get(f"{server}/ok", timeout=10).text == "hello"  # no run: just works
    finally:
        ours.uninstrument()
    assert [vars(owner)[name] for owner, name in names] == before


@pytest.mark.parametrize(
    ("opt_in", "url_key"), [(None, "url.full"), ("database", "http.url"), ("http", "url.full")]
)
def test_the_users_choice_of_names_stands(server: str, opt_in: str | None, url_key: str) -> None:
    """The variable beats us where it is set, and is not set for children where it is not."""
    script = f"""
import os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stagewatch.instrumentation.requests import RequestsInstrumentor
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
RequestsInstrumentor().instrument()
assert "requests" not in sys.modules
import requests
requests.get("{server}/ok?secret=1", timeout=10)
(span,) = exporter.get_finished_spans()
print(span.attributes["{url_key}"], os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN"))
"""
    environ = dict(os.environ)
    if opt_in:
        environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = opt_in
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{server}/ok {opt_in}\n"


def test_an_upstream_that_is_there_already_is_left_alone(server: str, recorded: Recorded) -> None:
    """Another distribution has instrumented: one span, counted by us all the same."""
    from opentelemetry.instrumentation.requests import RequestsInstrumentor as Upstream

    upstream, ours = Upstream(), RequestsInstrumentor()
    original = requests.Session.send
    upstream.instrument(tracer_provider=recorded.provider)
    try:
        ours.instrument()
        with warnings.catch_warnings():
            requests.get(f"{server}/ok", timeout=10)
        assert recorded.tree() == [{"GET": []}]
        assert _operations(recorded) == [("", "requests.GET", None)]
        ours.uninstrument()
        assert upstream.is_instrumented_by_opentelemetry
    finally:
        upstream.uninstrument()
    assert requests.Session.send is original
