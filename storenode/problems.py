"""Every failure of a request as an RFC 9457 problem document: the node's one place for that.

Errors of the store carry their own status (`client.errors`). What the web framework raises (arguments that do not validate,
unknown paths and methods) is `InvalidRequest`, the latter with the status that HTTP has for it. Anything else is a defect:
`InternalError` for the client, who learns nothing of it, and a traceback in the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from client.errors import InternalError, InvalidRequest, StoreError, Unauthenticated, to_problem
from client.wire import PROBLEM_TYPE, encode_json

__all__ = ["install_handlers", "internal_error", "problem_response", "refusal"]


def problem_response(
    error: StoreError, *, node_id: str, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The response that says `error`.

    Parameters
    ----------
    node_id : str
        This node; named unless the error comes from another one.
    status : int, optional
        Instead of the error's own.
    headers : mapping, optional
        To add.
    """
    problem = to_problem(error)
    problem["node_id"] = error.node_id or node_id
    if status is not None:
        problem["status"] = status
    sent = dict(headers or {})
    if isinstance(error, Unauthenticated):
        sent["www-authenticate"] = 'Bearer realm="forebay"'
    if error.retry_after_s is not None:
        sent["retry-after"] = str(math.ceil(error.retry_after_s))
    return Response(encode_json(problem), status_code=problem["status"], headers=sent, media_type=PROBLEM_TYPE)


def refusal(error: StoreError, *, node_id: str) -> bytes:
    """What is written to a connection that is closed before anything was asked on it."""
    response = problem_response(error, node_id=node_id, headers={"connection": "close"})
    head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return b"HTTP/1.1 %d \r\n%s\r\n%s" % (response.status_code, head, response.body)


def internal_error() -> InternalError:
    """What a client is told of a defect."""
    return InternalError("the node met an error that it has no name for; its log has the details")


def install_handlers(app: FastAPI, *, node_id: str, routers: Sequence[APIRouter]) -> None:
    """Have `app`, which serves `routers`, answer all its failures with problem documents."""

    async def on_store_error(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, StoreError)
        return problem_response(exc, node_id=node_id)

    async def on_invalid(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        return problem_response(_invalid(exc), node_id=node_id)

    async def on_http_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        message = f"{request.method} {request.url.path}: {exc.detail}; /openapi.json lists what this node serves"
        # The framework's own Allow names the methods of one route only, where several share the path.
        allowed = _methods_at(request, routers) if exc.status_code == 405 else ""
        headers = {"allow": allowed} if allowed else exc.headers
        return problem_response(InvalidRequest(message), node_id=node_id, status=exc.status_code, headers=headers)

    async def on_defect(_: Request, __: Exception) -> Response:
        # The framework raises it once more after the response, and `storenode.app` logs it there.
        return problem_response(internal_error(), node_id=node_id)

    app.add_exception_handler(StoreError, on_store_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)


def _methods_at(request: Request, routers: Sequence[APIRouter]) -> str:
    routes = (route for router in routers for route in router.routes)
    matching = (route for route in routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted(method for route in matching for method in route.methods or ()))


def _invalid(exc: RequestValidationError) -> InvalidRequest:
    faults = []
    for fault in exc.errors():
        place = " ".join(map(str, fault["loc"]))
        found = "" if fault["type"] == "missing" else f", found {str(fault.get('input'))[:100]!r}"
        faults.append(f"{place}: {fault['msg']}{found}")
    return InvalidRequest("; ".join(faults))
