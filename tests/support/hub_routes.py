"""The routes of the Hub in `tests/support/hub_server.py`: what it stores, who may see it, what it answers.

Status codes and `X-Error-Code` headers follow the real Hub's (huggingface_hub.utils._http reads them).
Files are named by their Git SHA-1, large ones by SHA-256 as well, and commits by a hash of their
content and history, so the client's own checks hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from tests.support.hub_server import HubServer

LARGE_FILES = (".safetensors", ".gguf", ".bin", ".pt", ".pkl", ".png")  # Git LFS, by .gitattributes


@dataclass(eq=False)
class Reply(Exception):
    """An answer of the server; raised where it is an error."""

    content: Any = b""  # bytes, or what becomes JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def failure(status: int, message: str, code: str = "") -> Reply:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return Reply({"error": message}, status, headers)


@dataclass
class Repository:
    kind: str  # "models", "datasets" or "spaces"
    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)  # who accepted the licence of a gated one
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # hash -> path -> content
    messages: list[str] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)  # branch or tag -> hash
    hardware: str | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], message: str, branch: str = "main") -> str:
        """Return the hash of a new commit that holds exactly `files`."""
        listing = [f"{path} {git_hash(content)}" for path, content in sorted(files.items())]
        text = "\n".join([*listing, *self.commits, self.references.get(branch, ""), message])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.messages.append(message)
        self.references[branch] = commit
        return commit

    def find(self, revision: str) -> str:
        """Return the hash of a branch, a tag, a commit or seven or more digits of one."""
        found = [self.references[revision]] if revision in self.references else []
        found += [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        if not found:
            raise failure(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.find(revision)]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Request:
    hub: HubServer
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def user(self) -> tuple[str | None, bool]:
        """Return (user, may write); (None, False) for a stranger."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise failure(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, (None, False))

    def repository(self, kind: str, name: str, *, write: bool = False, files: bool = False) -> Repository:
        """Return the repository if this request may see it, write to it, or read its `files`."""
        user, may_write = self.user()
        repository = self.hub.repositories.get((kind, name))
        owner = user == name.split("/")[0]
        if repository is None or (repository.private and not owner) or (write and not user):
            if user is None:
                raise failure(401, "Invalid username or password.")
            raise failure(404, "Repository not found", "RepoNotFound")
        if files and repository.gated and not owner and user not in repository.readers:
            raise failure(403 if user else 401, f"Access to model {name} is restricted.", "GatedRepo")
        if write and not (owner and may_write):
            raise failure(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository


Route = tuple[str, str, Callable[..., Any]]  # method, pattern of the path, what serves its groups


def storage(request: Request) -> Reply:
    """The host of large files."""
    request.hub.token_seen_by_cdn |= "Authorization" in request.headers
    oid = request.path.removeprefix("/lfs/")
    if request.method == "PUT":
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise failure(400, "the content is not the object's")
        request.hub.objects[oid] = request.body
        return Reply()
    return _download(request, request.hub.objects[oid], {"ETag": f'"{oid}"'})


def _download(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not asked:
        return Reply(content, 200, headers)
    start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    return Reply(content[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})


def api(request: Request) -> Reply:
    """The Hub itself."""
    for method, pattern, serve in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and method == request.method.replace("HEAD", "GET"):
            reply = serve(request, *(group and unquote(group) for group in match.groups()))
            return reply if isinstance(reply, Reply) else Reply(reply)
    raise failure(404, f"this server has no route for {request.method} {request.path}")


def _validate_card(request: Request) -> dict[str, Any]:
    block = re.match(r"---\r?\n(.*?)\r?\n---", json.loads(request.body)["content"], re.DOTALL)
    metadata = yaml.safe_load(block[1]) if block else {}
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        raise Reply({"errors": [{"message": '"license_name" is required'}], "warnings": []}, 400)
    return {"errors": [], "warnings": []}


def _create(request: Request) -> Reply:
    data = json.loads(request.body)
    user, may_write = request.user()
    if user is None:
        raise failure(401, "Invalid username or password.")
    kind = f"{data.get('type', 'model')}s"
    name = f"{data.get('organization') or user}/{data['name']}"
    url = _page(request, kind, name)
    if not may_write or name.split("/")[0] != user:
        raise failure(403, f"You don't have the rights to create a repository under {name.split('/')[0]}")
    if (kind, name) in request.hub.repositories:
        return Reply({"error": "You already created this repository", "url": url}, 409)
    hardware = data.get("hardware", "cpu-basic") if kind == "spaces" else None
    if hardware == "cpu-basic" and not request.hub.paid_plan:
        raise failure(402, "Subscribe to PRO to host Gradio Spaces on cpu-basic")
    private = data.get("visibility") == "private"
    request.hub.add_repository(name, kind=kind, private=private, hardware=hardware)
    return Reply({"url": url, "name": name, "id": name})


def _info(request: Request, kind: str, name: str, revision: str | None) -> dict[str, Any]:
    repository = request.repository(kind, name)
    # The real Hub gives sizes and hashes with ?blobs=true only; a client that did not ask reads over them.
    siblings = []
    for path, content in sorted(repository.files(revision or "main").items()):
        siblings.append({"rfilename": path, "size": len(content), "blobId": git_hash(content)})
        if path.endswith(LARGE_FILES):
            oid = hashlib.sha256(content).hexdigest()
            siblings[-1] |= {"blobId": "0" * 40, "lfs": {"sha256": oid, "size": len(content), "pointerSize": 134}}
    return {
        "_id": name,
        "id": name,
        "modelId": name,
        "sha": repository.find(revision or "main"),
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "tags": [],
        "siblings": siblings,
    }


def _tree(request: Request, kind: str, name: str, revision: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for path, content in sorted(request.repository(kind, name).files(revision).items()):
        entries.append({"type": "file", "path": path, "size": len(content), "oid": git_hash(content)})
        if path.endswith(LARGE_FILES):
            oid = hashlib.sha256(content).hexdigest()
            entries[-1]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entries


def _preupload(request: Request, kind: str, name: str, branch: str) -> dict[str, Any]:
    known = request.repository(kind, name, write=True).files(branch)
    files = []
    for path in (file["path"] for file in json.loads(request.body)["files"]):
        large = path.endswith(LARGE_FILES)
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
        if path in known:  # the client leaves out what has not changed
            files[-1]["oid"] = hashlib.sha256(known[path]).hexdigest() if large else git_hash(known[path])
    return {"files": files}


def _lfs_batch(request: Request, prefix: str | None, name: str) -> dict[str, Any]:
    request.repository(_kind(prefix), name, write=True)
    objects = json.loads(request.body)["objects"]
    for entry in objects:
        if entry["oid"] not in request.hub.objects:  # one that is there already needs no action
            entry["actions"] = {"upload": {"href": f"{request.hub.cdn}/lfs/{entry['oid']}", "header": {}}}
    return {"transfer": "basic", "objects": objects}


def _commit(request: Request, kind: str, name: str, branch: str) -> dict[str, Any]:
    repository = request.repository(kind, name, write=True)
    files = dict(repository.files(branch))
    lines = [json.loads(line) for line in request.body.splitlines()]
    for key, value in ((line["key"], line["value"]) for line in lines):
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = request.hub.objects[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
    commit = repository.commit(files, lines[0]["value"]["summary"], branch)
    return {"success": True, "commitOid": commit, "commitUrl": f"{_page(request, kind, name)}/commit/{commit}"}


def _page(request: Request, kind: str, name: str) -> str:
    return f"{request.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"


def _kind(prefix: str | None) -> str:
    """Return the kind of a repository from the first part of its address."""
    return (prefix or "models/").removesuffix("/")


def _reference(request: Request, kind: str, name: str, what: str, value: str) -> dict[str, Any]:
    repository, data = request.repository(kind, name, write=True), json.loads(request.body)
    new, start = (value, data.get("startingPoint", "main")) if what == "branch" else (data["tag"], value)
    if new in repository.references:
        raise failure(409, "Reference already exists")
    repository.references[new] = repository.find(start)
    return {}


def _space_variable(request: Request, name: str) -> dict[str, Any]:
    repository, data = request.repository("spaces", name, write=True), json.loads(request.body)
    repository.variables[data["key"]] = data["value"]
    return {key: {"value": value} for key, value in repository.variables.items()}


def _space_hardware(request: Request, name: str) -> dict[str, Any]:
    repository = request.repository("spaces", name, write=True)
    repository.hardware = json.loads(request.body)["flavor"]
    return {"stage": "BUILDING", "hardware": {"current": None, "requested": repository.hardware}}


def _resolve(request: Request, prefix: str | None, name: str, revision: str, path: str) -> Reply:
    repository = request.repository(_kind(prefix), name, files=True)
    commit = {"X-Repo-Commit": repository.find(revision)}
    if path not in repository.files(revision):
        missing = failure(404, "Entry not found", "EntryNotFound")
        missing.headers.update(commit)
        raise missing
    content = repository.files(revision)[path]
    if not path.endswith(LARGE_FILES):
        return _download(request, content, {**commit, "ETag": f'"{git_hash(content)}"'})
    oid = hashlib.sha256(content).hexdigest()
    request.hub.objects[oid] = content
    linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
    return Reply(b"", 302, {**commit, **linked, "Location": f"{request.hub.cdn}/lfs/{oid}"})


_REPOSITORY = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
ROUTES = (
    ("POST", r"/api/validate-yaml", _validate_card),
    ("POST", r"/api/repos/create", _create),
    ("GET", _REPOSITORY + r"(?:/revision/([^/]+))?", _info),
    ("GET", _REPOSITORY + r"/tree/([^/]+)", _tree),
    ("POST", _REPOSITORY + r"/preupload/([^/]+)", _preupload),
    ("POST", _REPOSITORY + r"/commit/([^/]+)", _commit),
    ("POST", _REPOSITORY + r"/(branch|tag)/([^/]+)", _reference),
    ("POST", r"/api/spaces/([^/]+/[^/]+)/variables", _space_variable),
    ("POST", r"/api/spaces/([^/]+/[^/]+)/hardware", _space_hardware),
    ("POST", r"/(spaces/|datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", _lfs_batch),
    ("GET", r"/(spaces/|datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _resolve),
)
