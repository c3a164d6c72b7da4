"""
How the HTTP server runs: its address, its batches and its limits, in one place and without importing the server.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields


TOKEN_VARIABLE = "HF_GENREC_TOKEN"  # noqa: S105 (the name of an environment variable)


@dataclass(frozen=True)
class ServerSettings:
    """
    Settings of [`~hf_genrec.serving.server.app.create_app`] and of `hf-genrec serve`.

    Args:
        host (`str`, *optional*, defaults to `"127.0.0.1"`): Address to listen on; `"0.0.0.0"` for all networks.
        port (`int`, *optional*, defaults to 8000): Port to listen on; 0 lets the system choose one.
        max_batch (`int`, *optional*, defaults to 64):
            Users computed together: requests with equal options share a batch. 1 computes each request alone.
        window_ms (`float`, *optional*, defaults to 0.0):
            Milliseconds that the first request of a batch waits for others while the model is idle. With 0 a batch
            is what has arrived while the batch before was computed.
        max_queue (`int`, *optional*, defaults to 512): Users that may wait; a request beyond it is answered by 429.
        timeout (`float`, *optional*, defaults to 10.0):
            Seconds until a request is answered by 504. A request may ask for fewer.
        drain (`float`, *optional*, defaults to 3.0):
            Seconds after SIGTERM in which requests are still accepted while `/ready` answers 503 and each answer
            closes its connection, so that clients and load balancers go elsewhere.
        threads (`int`, *optional*):
            Threads that torch computes with; `None` for its own choice within the CPU quota of a container.
        token (`str`, *optional*):
            What the routes that change the catalog ask for as `Authorization: Bearer ...`. `None` turns these routes
            off unless the server listens on a loopback address.
        encoder (`str`, *optional*):
            Folder of the text encoder for new items, where training read a local one; `None` for the model it names.
        max_body (`int`, *optional*, defaults to 8 MiB): Bytes of a request's body; more is answered by 413.
        max_histories (`int`, *optional*, defaults to 256): Histories of a request.
        max_history_length (`int`, *optional*, defaults to 1000): Items of a history. The model reads the latest.
        max_top_k (`int`, *optional*, defaults to 200): Items of a list.
        max_beams (`int`, *optional*, defaults to 500): Beams, groups and re-scored items that a request may ask for.
        max_ids (`int`, *optional*, defaults to 10000): Ids of a rule, and items of a change of the catalog.

    Raises:
        ValueError: If a number is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    window_ms: float = 0.0
    max_queue: int = 512
    timeout: float = 10.0
    drain: float = 3.0
    threads: int | None = None
    token: str | None = None
    encoder: str | None = None
    max_body: int = 8 << 20
    max_histories: int = 256
    max_history_length: int = 1000
    max_top_k: int = 200
    max_beams: int = 500
    max_ids: int = 10_000

    def __post_init__(self) -> None:
        least = {"port": 0, "window_ms": 0, "drain": 0, "timeout": 0.001}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("host", "token", "encoder") or value is None:
                continue
            if not value >= least.get(field.name, 1):
                raise ValueError(f"`{field.name}` must be at least {least.get(field.name, 1)}, got {value!r}.")
        if self.token == "":
            raise ValueError(f"`token` must not be empty; unset {TOKEN_VARIABLE} to have none.")
        if self.max_queue < self.max_histories:
            raise ValueError(
                f"`max_queue` must be at least `max_histories` ({self.max_histories}), got {self.max_queue}: a "
                "request of so many histories would never find room."
            )

    @property
    def is_loopback(self) -> bool:
        """`bool`: whether only this machine can reach the server."""
        return is_loopback(self.host)

    def limits(self) -> dict[str, int]:
        """`dict[str, int]`: the limits of a request, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name.startswith("max_")}


def is_loopback(host: str) -> bool:
    """
    Whether an address is that of this machine.

    Args:
        host (`str`): A name or an address.

    Example:

    ```python
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)

    ```
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
