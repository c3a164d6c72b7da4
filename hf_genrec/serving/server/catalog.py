"""
The routes that show and change the catalog of a running server, and who may use them.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from hf_genrec.serving.server.bodies import (
    AddRequest,
    CatalogChange,
    CatalogStatus,
    Problem,
    RemoveRequest,
    RollbackRequest,
)
from hf_genrec.serving.server.settings import TOKEN_VARIABLE, ServerSettings, is_loopback


if TYPE_CHECKING:
    from hf_genrec.serving.server.app import ServerState

_REFUSED: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 401, 403, 413, 422, 501, 503)}
_bearer = HTTPBearer(auto_error=False, description=f"What the server was started with as {TOKEN_VARIABLE}.")


def add_catalog_routes(app: FastAPI, state: ServerState) -> None:
    """
    Add `GET /catalog/status` and `POST /catalog/add`, `/catalog/remove` and `/catalog/rollback`.

    Args:
        app (`FastAPI`): The application.
        state ([`ServerState`]): What its routes share.
    """
    router = APIRouter(prefix="/catalog", tags=["catalog"], dependencies=[Depends(_guard(state.settings))])

    async def changed(change: Callable[[Any], Any]) -> CatalogChange:
        """One change at a time, beside the answers; those that are being computed end on the catalog they began on."""
        catalog = state.ready().catalog
        async with state.changing:
            try:
                return CatalogChange.model_validate(await asyncio.to_thread(change, catalog))
            except (ValueError, TypeError) as error:  # what the library says of items, ids and versions
                raise HTTPException(422, str(error)) from error
            except ImportError as error:  # texts need the encoder's library
                raise HTTPException(501, str(error)) from error
            except OSError as error:  # and the encoder; nothing was changed
                detail = f"{error} Start the server with `--encoder FOLDER`, or send `vectors`."
                if error.errno is not None:
                    detail = f"The served folder cannot be written: {error.strerror}."
                raise HTTPException(503, detail) from error

    @router.get("/status", responses=_REFUSED)
    async def status() -> CatalogStatus:
        """The version of the catalog and those before it."""
        catalog = state.ready().catalog
        versions = [CatalogChange.model_validate(each) for each in catalog.versions()]
        return CatalogStatus(version=catalog.version.number, num_items=catalog.version.num_items, versions=versions)

    @router.post("/add", responses=_REFUSED)
    async def add(body: AddRequest) -> CatalogChange:
        """Add items: they may be recommended from the next request on."""
        check_length("items", body.items, state.settings)
        items = [item.model_dump(exclude_unset=True) for item in body.items]
        try:
            vectors = None if body.vectors is None else np.array(body.vectors, np.float32)
        except ValueError as error:
            raise HTTPException(422, "`vectors` must be of one length.") from error
        return await changed(lambda catalog: catalog.add(items, vectors=vectors, encoder=state.settings.encoder))

    @router.post("/remove", responses=_REFUSED)
    async def remove(body: RemoveRequest) -> CatalogChange:
        """Remove items: they are not recommended any more, and still count in histories."""
        check_length("item_ids", body.item_ids, state.settings)
        return await changed(lambda catalog: catalog.remove(body.item_ids))

    @router.post("/rollback", responses=_REFUSED)
    async def rollback(body: RollbackRequest) -> CatalogChange:
        """Go back to an earlier version, which becomes a new one."""
        return await changed(lambda catalog: catalog.rollback(body.version))

    app.include_router(router)


def check_length(name: str, values: list[Any], settings: ServerSettings) -> None:
    """
    Refuse a change of too many items with an answer of 422.

    Args:
        name (`str`): The field.
        values (`list`): What it holds.
        settings ([`ServerSettings`]): The limits.
    """
    if len(values) > settings.max_ids:
        problem = {"loc": ["body", name], "msg": f"at most `max_ids` = {settings.max_ids} items, got {len(values)}"}
        raise HTTPException(422, [problem])


def _guard(settings: ServerSettings) -> Callable[..., None]:
    """Refuses requests without the token; where none is set, all but those of this machine."""

    def check(
        request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
    ) -> None:
        if settings.token is not None:
            if given is None or not hmac.compare_digest(given.credentials.encode(), settings.token.encode()):
                raise HTTPException(401, "The token is missing or wrong.", {"WWW-Authenticate": "Bearer"})
            return
        # A web page that a browser on this machine shows could reach a loopback address under a name of its own.
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if not settings.is_loopback or not is_loopback(host.strip("[]")):
            raise HTTPException(403, f"The routes of the catalog are off: start the server with {TOKEN_VARIABLE} set.")

    return check
