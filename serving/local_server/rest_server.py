"""The REST side's sockets: aiohttp in a thread of its own, requests computed by a pool of threads."""

from __future__ import annotations

import asyncio
import logging as std_logging
import threading
import time
from concurrent import futures

from absl import logging
from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestPayloadError

from serving.local_server import rest_api
from serving.local_server.options import ServerOptions
from serving.shared.addresses import listen


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = rest_api.error_answer(status, text)


class RestServer:
    """Serves a RestApi from `__init__` until `stop`."""

    def __init__(self, api: rest_api.RestApi, options: ServerOptions, workers: int) -> None:
        """Starts to serve.

        Raises:
          OSError: if the port cannot be had.
        """
        self._api = api
        self._options = options
        self._socket = listen(options.host, options.rest_port, "REST")
        self.port: int = self._socket.getsockname()[1]
        self._workers = futures.ThreadPoolExecutor(workers, thread_name_prefix="rest")
        self._most = workers
        self._handled = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop(self) -> None:
        """Accepts no more, lets requests finish while there is time, and ends the thread."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _start(self) -> web.ServerRunner:
        runner = web.ServerRunner(
            # What aiohttp logs as errors are bytes that are no HTTP, which any client can send.
            web.Server(self._handle, access_log=None, logger=std_logging.Logger("http", std_logging.CRITICAL)),
            shutdown_timeout=self._options.shutdown_seconds,
        )
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        return runner

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._handled += 1
        try:
            answer = await self._answer(request)
        except _Refused as refused:
            answer = refused.answer
        except RequestPayloadError as error:
            answer = rest_api.error_answer(400, f"Malformed request body: {error}")
        except ConnectionError:  # the client has gone, and nobody reads the answer
            answer = rest_api.error_answer(499, "")
        except Exception as error:
            logging.exception("a request failed")
            answer = rest_api.error_answer(500, f"{type(error).__name__}: {error}")
        finally:
            self._handled -= 1
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)

    async def _answer(self, request: web.BaseRequest) -> rest_api.Answer:
        if self._handled > self._most:
            raise _Refused(503, f"{self._most} requests are being received or computed. Try again later.")
        body = await self._body(request)
        seconds = self._options.rest_timeout_seconds
        deadline = time.monotonic() + seconds
        arguments = request.method, request.raw_path, body, deadline, lambda: request.transport is not None
        try:
            return await asyncio.wait_for(
                self._loop.run_in_executor(self._workers, self._api.answer, *arguments), seconds
            )
        except TimeoutError:
            raise _Refused(504, f"No answer within {seconds:g} s") from None

    async def _body(self, request: web.BaseRequest) -> bytes:
        limit = self._options.max_message_bytes
        too_large = _Refused(413, f"Request body larger than the limit of {limit} bytes")
        if (request.content_length or 0) > limit:
            raise too_large
        expected = request.headers.get("Expect", "").lower() == "100-continue"  # curl waits a second for it
        if expected and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = bytearray()
        try:
            async with asyncio.timeout(self._options.body_seconds):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise _Refused(408, f"Request body not received within {self._options.body_seconds:g} s") from None
        return bytes(body)
