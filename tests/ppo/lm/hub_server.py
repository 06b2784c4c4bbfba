"""A stand-in for the hub on this machine: the few requests that the hub's client makes for a download.

Run as a program it is the client instead: it loads the models that its argument asks for, and prints what came of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_letmein"


@dataclass
class Repository:
    """Folders by revision. ``is_private``: not there without the token; ``is_gated``: there, but without its files."""

    revisions: dict[str, Path]
    is_private: bool = False
    is_gated: bool = False

    def commit(self, revision: str) -> str | None:
        commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.revisions}
        return commits.get(revision, revision if revision in commits.values() else None)

    def folder(self, commit: str) -> Path:
        return next(path for name, path in self.revisions.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """``asked``: the paths of all requests. ``is_silent``: no request is answered."""

    repositories: dict[str, Repository]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    is_silent: bool = False


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """The hub at ``hub.url``, on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            if hub.is_silent:
                time.sleep(5)
                return
            parts = path.removeprefix("/api/models").strip("/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            repository = hub.repositories.get(name)
            may_read = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repository is None or (repository.is_private and not may_read):
                self.refuse(401, "RepoNotFound")
                return
            commit = repository.commit(rest[1] if len(rest) > 1 else "main")
            if commit is None:
                self.refuse(404, "RevisionNotFound")
            elif path.startswith("/api/"):
                files = sorted(repository.folder(commit).iterdir())
                entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
                siblings = [{"rfilename": f.name} for f in files]
                found = entries if rest[:1] == ["tree"] else {"id": name, "sha": commit, "siblings": siblings}
                self.answer(json.dumps(found).encode(), {"Content-Type": "application/json"})
            elif repository.is_gated and not may_read:
                self.refuse(401, "GatedRepo")
            else:
                content = (repository.folder(commit) / rest[2]).read_bytes()
                etag = hashlib.sha1(content).hexdigest()
                self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

        do_HEAD = do_GET

        def refuse(self, status: int, code: str) -> None:
            self.answer(b"", {"X-Error-Code": code}, status)

        def answer(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Load each of [[source, token], …]; print [[what was said or null, norm of the output layer, seconds], …]."""
    from ppo.lm.load import load_pretrained

    results = []
    for source, token in json.loads(sys.argv[1]):
        os.environ.pop("HF_TOKEN", None)
        if token:
            os.environ["HF_TOKEN"] = token
        started, said, norm = time.monotonic(), None, 0.0
        try:
            norm = float(load_pretrained(source)[0].lm_head.weight.norm())
        except ValueError as error:
            said = str(error)
        results.append([said, norm, time.monotonic() - started])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
