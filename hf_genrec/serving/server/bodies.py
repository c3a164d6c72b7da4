"""
What the HTTP server takes and answers: JSON bodies as pydantic models, with the limits of a server in them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model, model_validator
from pydantic_core import PydanticCustomError

from hf_genrec.modeling.genrec_recommend_config import RecommendConfig
from hf_genrec.serving.server.settings import ServerSettings


ItemId = Annotated[str, StringConstraints(max_length=512)]
Code = Annotated[int, Field(ge=0, lt=1 << 15)]
Time = Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]
Value = str | bool | Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | float | list[str] | None  # of a column
_NO_OPTIONS = (
    "top_k",
    "exclude_seen",
    "memory_budget",
)  # named by the request itself, or none of the client's business


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RecommendRequest(_Body):
    """One history or several, and what may be recommended."""

    history: list[ItemId] | None = Field(None, description="Item ids of one user, oldest first.")
    histories: list[list[ItemId]] | None = Field(None, description="Several users; instead of `history`.")
    times: list[Time] | list[list[Time]] | None = Field(
        None,
        description="When each item of the history, or of each of the histories, was taken, in milliseconds since the "
        "epoch. For models with `history_gap_buckets`.",
    )
    top_k: int = Field(10, ge=1, description="Items of a list.")
    exclude_seen: bool | None = Field(
        None, description="Whether items of the history are left out; what the model was saved with if not given."
    )
    exclude_items: list[ItemId] | list[list[ItemId]] | None = Field(
        None, description="Ids that may not be recommended: a list for all users, or a list for each."
    )
    allow_items: list[ItemId] | list[list[ItemId]] | None = Field(
        None, description="The only ids that may be recommended: a list for all users, or a list for each."
    )
    options: dict[str, Any] | BaseModel = Field(
        default_factory=dict, description="Fields of RecommendConfig that this model knows."
    )
    timeout: float | None = Field(None, gt=0, description="Seconds until 504, at most those of the server.")

    @model_validator(mode="after")
    def _checked(self) -> RecommendRequest:
        if (self.history is None) == (self.histories is None):
            raise PydanticCustomError("one_of", "Give either `history` or `histories`")
        num_users = len(self.users())
        for name in ("exclude_items", "allow_items"):
            rule = getattr(self, name)
            if rule and isinstance(rule[0], list) and len(rule) != num_users:
                raise PydanticCustomError(
                    "one_per_user",
                    "`{name}` must be one list of ids or one per user ({num_users}), got {num_lists}",
                    {"name": name, "num_users": num_users, "num_lists": len(rule)},
                )
        if self.times is not None and [len(row) for row in self.users_times()] != [len(row) for row in self.users()]:
            raise PydanticCustomError("one_per_item", "`times` must have a time for each item of the histories")
        return self

    def users_times(self) -> list[Any]:
        """`list[list[int]]`: the times of each user; `None` for each if there are none, and none of another shape."""
        rows: Any = self.times
        if rows is None:
            return [None] * len(self.users())
        rows = [rows] if self.history is not None else rows
        is_flat = all(isinstance(row, list) and all(isinstance(time, int) for time in row) for row in rows)
        return rows if is_flat else []

    def users(self) -> list[list[str]]:
        """`list[list[str]]`: a history per user."""
        return [self.history] if self.history is not None else self.histories or []

    def asked_options(self) -> dict[str, Any]:
        """`dict[str, Any]`: the options that were given."""
        return self.options.model_dump(exclude_unset=True) if isinstance(self.options, BaseModel) else self.options


class RecommendResponse(BaseModel):
    """Lists of items: flat for `history`, nested for `histories`."""

    item_ids: list[str] | list[list[str]]
    scores: list[float] | list[list[float]] = Field(description="Log-probabilities.")
    num_unknown: int = Field(description="Ids of the histories that the catalog never had; they were ignored.")
    catalog_version: int | None = Field(description="The version of the catalog that the lists come from.")


class Status(BaseModel):
    """How the server is."""

    status: str


class FieldProblem(BaseModel):
    """What is wrong with a field of a request."""

    model_config = ConfigDict(extra="allow")
    loc: list[str | int]
    msg: str


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str | list[FieldProblem]


class Info(BaseModel):
    """What runs here."""

    model: str
    revision: str | None
    architecture: str
    dtype: str
    decoding: str
    num_items: int
    catalog_version: int
    fingerprint: str
    versions: dict[str, str]
    limits: dict[str, int]


class NewItem(BaseModel):
    """A new item; other columns of the item table where they are known."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Value] = Field(init=False)
    item_id: ItemId
    title: str | None = None
    text: str | None = Field(None, description="What its semantic ID follows from; the title if not given.")
    codes: list[Code] | None = Field(None, description="Its semantic ID, if it is known already.")


class AddRequest(_Body):
    """New items."""

    items: list[NewItem] = Field(min_length=1, description="An object per item.")
    vectors: list[list[float]] | None = Field(None, description="A vector per item; made from its text if not given.")


class RemoveRequest(_Body):
    """Items that are no longer sold."""

    item_ids: list[ItemId] = Field(min_length=1)


class RollbackRequest(_Body):
    """A version to go back to."""

    version: int = Field(ge=1)


class CatalogChange(BaseModel):
    """A version of the catalog."""

    model_config = ConfigDict(from_attributes=True)
    number: int
    parent: int | None
    time: str
    num_items: int
    num_added: int
    num_removed: int
    fingerprint: str


class CatalogStatus(BaseModel):
    """The catalog as it is, and how it became so."""

    version: int
    num_items: int
    versions: list[CatalogChange]


def recommend_model(settings: ServerSettings) -> type[RecommendRequest]:
    """
    [`RecommendRequest`] with the limits of a server in its schema, and the options of `recommend()` by name.

    Args:
        settings ([`ServerSettings`]): The server's.
    """
    history: Any = Annotated[list[ItemId], Field(max_length=settings.max_history_length)]
    histories: Any = Annotated[list[history], Field(max_length=settings.max_histories)]
    ids: Any = Annotated[list[ItemId], Field(max_length=settings.max_ids)]
    rule = ids | Annotated[list[ids], Field(max_length=settings.max_histories)] | None
    row: Any = Annotated[list[Time], Field(max_length=settings.max_history_length)]
    times: Any = row | Annotated[list[row], Field(max_length=settings.max_histories)] | None
    types = {"history": history | None, "histories": histories | None, "exclude_items": rule, "allow_items": rule}
    types |= {"times": times}
    types |= {"top_k": Annotated[int, Field(ge=1, le=settings.max_top_k)], "options": _options_model(settings)}
    limited: dict[str, Any] = {name: (kind, RecommendRequest.model_fields[name]) for name, kind in types.items()}
    return create_model("RecommendRequest", __base__=RecommendRequest, __doc__=RecommendRequest.__doc__, **limited)


def _options_model(settings: ServerSettings) -> type[BaseModel]:
    """The fields of `RecommendConfig`, so that `/docs` lists them; a model says which of them it knows."""
    beams = Annotated[int, Field(ge=0, le=settings.max_beams)]
    limited: dict[str, Any] = dict.fromkeys(("num_beams", "num_rescored", "num_groups", "num_neighbors"), beams)
    limited |= {"num_propagations": Annotated[int, Field(ge=0, le=20)]}
    kinds = get_type_hints(RecommendConfig)
    names = [option.name for option in fields(RecommendConfig) if option.name not in _NO_OPTIONS]
    options: dict[str, Any] = {name: (limited.get(name, kinds[name]) | None, None) for name in names}
    return create_model("RecommendOptions", __base__=_Body, __doc__="Options of a call.", **options)
