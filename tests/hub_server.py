"""
A small Hub on loopback: what the unmodified `huggingface_hub` client asks for, with everything kept in memory.

Contents are stored under their digests, a commit is a snapshot `{path: blob}`, and a branch is the name of a commit:
a branch moves only when a whole commit is there. `faults` breaks chosen requests, `requests` tells what came in.
"""

import asyncio
import base64
import hashlib
import json
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from uvicorn.protocols.http.h11_impl import H11Protocol


TOKEN = "hf_" + "t" * 34  # of the user `me`
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = (".safetensors", ".parquet", ".bin")


@dataclass(frozen=True)
class Blob:
    data: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        data = f"pointer {self.sha256} {len(self.data)}".encode() if self.is_large else self.data
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_oid


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    settings: dict
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        listing = sorted((path, blob.git_oid) for path, blob in files.items())
        oid = hashlib.sha1(json.dumps([self.name, listing, len(self.commits)]).encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        self.branches[branch] = oid
        return oid

    def head(self, revision: str = "main") -> str:
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.commits[self.head(revision)].items()}


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path contain `where`: a status, or a cut line."""

    where: str
    times: int = 1
    status: int | None = None
    cut_after: int = 0  # bytes of the body, of the request if it has one, else of the answer


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


class Hub:
    """The state of the server; tests read and break it."""

    def __init__(self) -> None:
        self.url = ""
        self.storage_url = ""  # another host, as in the real Hub: it does not get the token
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []  # method, path, bytes of the body
        self.lock = threading.Lock()

    def clear(self) -> None:
        for state in (self.repos, self.large, self.faults, self.requests):
            state.clear()

    def repo(self, kind: str, name: str) -> Repo:
        if (kind, name) not in self.repos:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, name]

    def model(self, name: str) -> Repo:
        return self.repo("model", name)

    def bytes_received(self, *, since: int = 0) -> dict[str, int]:
        """Bytes of request bodies by the last part of the path."""
        counts: dict[str, int] = defaultdict(int)
        for method, path, size in self.requests[since:]:
            if size:
                counts[f"{method} {path.rsplit('/', 1)[-1]}"] += size
        return dict(counts)

    def page(self, repo: Repo) -> str:
        return f"{self.url}/{PREFIXES[repo.kind]}{repo.name}"

    def create(self, body: dict) -> str:
        kind = body.get("type") or "model"
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        repo = self.repos.get((kind, name))
        if repo is not None:
            raise Refusal(409, "", "You already created this repo", {"X-Url": self.page(repo)})
        private = body.get("visibility") == "private" or bool(body.get("private"))
        repo = self.repos[kind, name] = Repo(kind, name, private, settings=body)
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return self.page(repo)

    def commit(self, repo: Repo, branch: str, lines: list[dict]) -> str:
        header = lines[0]["value"]
        if branch not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        with self.lock:
            head = repo.branches[branch]
            if header.get("parentCommit", head) != head:
                raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head])
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            return repo.commit(branch, files, header["summary"])

    def _apply(self, files: dict[str, Blob], key: str, value: dict) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in self.large:
                raise Refusal(400, "", f"{path} was not uploaded")
            files[path] = Blob(self.large[value["oid"]], True)
        elif key == "deletedFile":
            if path not in files:
                raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            del files[path]
        else:
            raise Refusal(400, "", f"unknown operation {key}")


class _TransportProtocol(H11Protocol):
    """Hands the connection to the application, which can then cut it."""

    def connection_made(self, transport):
        super().connection_made(transport)
        app = self.app

        async def with_transport(scope, receive, send):
            await app(scope | {"transport": transport}, receive, send)

        self.app = with_transport


def _entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
    return entry | ({"lfs": {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}} if blob.is_large else {})


def _info(repo: Repo, revision: str) -> dict:
    commit = repo.head(revision)
    names = [{"rfilename": path} for path in sorted(repo.commits[commit])]
    date = "2026-01-01T00:00:00.000Z"
    return {
        "_id": "0", "id": repo.name, "modelId": repo.name, "author": repo.name.partition("/")[0], "sha": commit,
        "private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
        "siblings": names, "createdAt": date, "lastModified": date,
    }  # fmt: skip


def _add_repositories(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/whoami-v2")
    async def whoami():
        return {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}, "orgs": []}

    @app.post("/api/repos/create")
    async def create(request: Request):
        return {"url": hub.create(await request.json())}

    @app.post("/api/validate-yaml")
    async def validate(request: Request):
        head = (await request.json())["content"].split("---\n")
        try:
            yaml.safe_load(head[1] if len(head) > 2 else "")
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return {"errors": [], "warnings": []}

    @app.get("/api/{kind}/{owner}/{name}")
    async def info(kind: str, owner: str, name: str):
        return _info(hub.repo(KINDS[kind], f"{owner}/{name}"), "main")

    @app.get("/api/{kind}/{owner}/{name}/revision/{revision}")
    async def revision_info(kind: str, owner: str, name: str, revision: str):
        return _info(hub.repo(KINDS[kind], f"{owner}/{name}"), revision)

    @app.get("/api/{kind}/{owner}/{name}/refs")
    async def refs(kind: str, owner: str, name: str):
        branches = hub.repo(KINDS[kind], f"{owner}/{name}").branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in branches.items()]
        return {"branches": listed, "converts": [], "tags": []}

    @app.post("/api/{kind}/{owner}/{name}/branch/{branch}")
    async def create_branch(kind: str, owner: str, name: str, branch: str, request: Request):
        repo = hub.repo(KINDS[kind], f"{owner}/{name}")
        if branch in repo.branches:
            raise Refusal(409, "", "Reference already exists")
        repo.branches[branch] = repo.head((await request.json()).get("startingPoint", "main"))
        return {}

    @app.post("/api/spaces/{owner}/{name}/variables")
    async def variable(owner: str, name: str, request: Request):
        body = await request.json()
        hub.repo("space", f"{owner}/{name}").settings.setdefault("set", {})[body["key"]] = body["value"]
        return {body["key"]: {"value": body["value"]}}


def _add_commits(app: FastAPI, hub: Hub) -> None:
    @app.post("/api/{kind}/{owner}/{name}/preupload/{revision}")
    async def preupload(kind: str, owner: str, name: str, revision: str, request: Request):
        repo = hub.repo(KINDS[kind], f"{owner}/{name}")
        there = repo.commits[repo.head(revision)]
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            | ({"oid": there[f["path"]].etag} if f["path"] in there else {})
            for f in (await request.json())["files"]
        ]
        return {"commitOid": repo.head(revision), "files": files}

    @app.post("/api/{kind}/{owner}/{name}/commit/{revision}")
    async def commit(kind: str, owner: str, name: str, revision: str, request: Request):
        repo = hub.repo(KINDS[kind], f"{owner}/{name}")
        oid = hub.commit(repo, revision, [json.loads(line) for line in (await request.body()).splitlines()])
        return {"success": True, "commitOid": oid, "commitUrl": f"{hub.page(repo)}/commit/{oid}", "hookOutput": ""}

    @app.get("/api/{kind}/{owner}/{name}/tree/{revision}")
    @app.get("/api/{kind}/{owner}/{name}/tree/{revision}/{folder:path}")
    async def tree(kind: str, owner: str, name: str, revision: str, folder: str = ""):
        repo = hub.repo(KINDS[kind], f"{owner}/{name}")
        files = repo.commits[repo.head(revision)]
        return [_entry(path, blob) for path, blob in sorted(files.items()) if path.startswith(folder)]

    @app.post("/api/{kind}/{owner}/{name}/paths-info/{revision}")
    async def paths_info(kind: str, owner: str, name: str, revision: str, request: Request):
        repo = hub.repo(KINDS[kind], f"{owner}/{name}")
        files = repo.commits[repo.head(revision)]
        if request.headers["content-type"].startswith("application/json"):
            paths = (await request.json())["paths"]
        else:
            paths = parse_qs((await request.body()).decode())["paths"]
        return [_entry(path, files[path]) for path in paths if path in files]


def _add_contents(app: FastAPI, hub: Hub) -> None:
    @app.post("/{repo:path}.git/info/lfs/objects/batch")
    async def batch(repo: str, request: Request):
        objects = []
        for wanted in (await request.json())["objects"]:
            action = {"upload": {"href": f"{hub.url}/storage/{wanted['oid']}"}}
            action["verify"] = {"href": f"{hub.url}/verify/{wanted['oid']}"}
            objects.append(wanted | ({} if wanted["oid"] in hub.large else {"actions": action}))
        return JSONResponse({"transfer": "basic", "objects": objects})

    @app.put("/storage/{oid}")
    async def store(oid: str, request: Request):
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "", "the bytes are not those of the digest")
        hub.large[oid] = data
        return Response()

    @app.post("/verify/{oid}")
    async def verify(oid: str, request: Request):
        if len(hub.large.get(oid, b"")) != (await request.json())["size"]:
            raise Refusal(404, "", "object is not there")
        return {}

    @app.get("/storage/{oid}")
    async def storage(oid: str, request: Request):
        return _served(request, hub.large[oid], {"ETag": f'"{oid}"'})

    @app.api_route("/{repo:path}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(repo: str, revision: str, path: str, request: Request):
        kind = {"datasets": "dataset", "spaces": "space"}.get(repo.split("/")[0], "model")
        found = hub.repo(kind, repo.removeprefix(PREFIXES[kind]))
        commit = found.head(revision)
        blob = found.commits[commit].get(path)
        if blob is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if blob.is_large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
            return RedirectResponse(f"{hub.storage_url}/storage/{blob.sha256}", 302, headers)
        return _served(request, blob.data, headers)


def _served(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """The bytes, or those that a `Range` asks for; a fault may cut the line after some of them."""
    start, status = 0, 200
    if request.headers.get("range", "").startswith("bytes="):
        start, status = int(request.headers["range"][6:].partition("-")[0]), 206
        headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    data, fault = data[start:], request.scope.get("fault")
    if fault is None or request.method == "HEAD":
        return Response(data, status, headers)

    async def part():
        yield data[: fault.cut_after]
        await asyncio.sleep(0.05)  # what was written leaves before the line is cut
        request.scope["transport"].abort()
        await asyncio.sleep(0.05)

    return StreamingResponse(part(), status, headers | {"Content-Length": str(len(data))})


class _Gate:
    """Counts what comes in, refuses strangers, and breaks what a test wants broken."""

    def __init__(self, app, hub: Hub) -> None:
        self.app, self.hub = app, hub

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        hub, where = self.hub, f"{scope['method']} {scope['path']}"
        entry = len(hub.requests)
        hub.requests.append((scope["method"], scope["path"], 0))
        fault = next((f for f in hub.faults if f.where in where and f.times > 0), None)
        size = 0

        async def counted():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            hub.requests[entry] = (scope["method"], scope["path"], size)
            return message

        if fault is not None:
            fault.times -= 1
            if fault.status is not None:
                return await JSONResponse({"error": "broken"}, fault.status)(scope, counted, send)
            if scope["method"] in ("PUT", "POST"):
                while size < fault.cut_after and (await counted()).get("more_body"):
                    pass
                return scope["transport"].abort()
        headers = dict(scope["headers"])
        is_known = headers.get(b"authorization", b"").decode() == f"Bearer {TOKEN}"
        if not is_known and not self._is_open(scope):
            answer = JSONResponse({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return await answer(scope, counted, send)
        return await self.app(scope | {"fault": fault}, counted, send)

    def _is_open(self, scope) -> bool:
        """Storage links carry their own right; of repositories, public ones may be read."""
        path = scope["path"]
        if path.startswith(("/storage/", "/verify/")):
            return True
        if scope["method"] == "POST" and "paths-info" not in path:
            return False
        names = [repo.name for repo in self.hub.repos.values() if not repo.private]
        return any(f"/{name}" in path for name in names)


def make_app(hub: Hub) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal):
        headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message} | refusal.headers
        body = {"error": refusal.message} | ({"url": headers["X-Url"]} if "X-Url" in headers else {})
        return JSONResponse(body, refusal.status, headers)

    _add_repositories(app, hub)
    _add_commits(app, hub)
    _add_contents(app, hub)
    app.add_middleware(_Gate, hub=hub)
    return app


def start() -> tuple[Hub, uvicorn.Server]:
    """A running server on a free port; set `should_exit` to stop it."""
    hub = Hub()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    hub.storage_url = hub.url.replace("127.0.0.1", "localhost")
    server = uvicorn.Server(uvicorn.Config(make_app(hub), log_level="error", http=_TransportProtocol, lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return hub, server
