"""一台本地的假模型站：说 Hugging Face 与 ModelScope 两家的 HTTP，会断、会停、会坏、会拒绝。

    with StandIn({"me/model": {"model_index.json": b"..."}}) as hub:
        hub.faults["transformer/x.safetensors"] = ["cut", "corrupt", 500]   # 依次用掉

`python tests/stand_in_hub.py 文件夹 名字` 单独开一台，好在命令行上试。
"""

import base64
import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "c0ffee" + "0" * 34


class StandIn:
    """服务器在一个线程里；repos 是 {名字: {路径: 内容}}，两个站共用。"""

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        self.repos = repos
        self.faults: dict[str, list] = defaultdict(list)  # 路径 -> 接下来每次请求出什么错
        self.asked: list[str] = []  # 被要过内容的路径，断点续传的写成 路径@起点
        self.gated: set[str] = set()
        self.down: set[str] = set()  # "hf"、"ms"：整个站回答 503
        self.absent: set[str] = set()  # "hf"、"ms"：站上没有任何模型
        self.portal = False  # 像酒店的上网登录页：什么都回答一页 HTML
        self.fingerprints = True
        self.stall = 5.0
        self.tokens = {"good-token"}
        self.seen_tokens: set[str] = set()
        self.made: dict[tuple[str, str], dict] = {}  # (站, 仓库) -> 建它时说的
        self.uploaded: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
        self.blobs: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}  # "create"、"blob"、"commit" -> 用这个状态拒绝
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def weights(self) -> list[str]:
        """被要过的权重文件，各一次，按次序。"""
        names = [path.split("@")[0] for path in self.asked if ".safetensors" in path]
        return list(dict.fromkeys(name for name in names if not name.endswith(".json")))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *_): ...

    def do_GET(self):
        url = urlparse(self.path)
        site, _, rest = url.path.strip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.note_token()
        if self.hub.portal:
            return self.send(200, "text/html", b"<html>please log in</html>")
        if site in self.hub.down:
            return self.answer(503, {"error": "busy"})
        if site == "hf":
            return self.hugging_face(unquote(rest))
        if site == "ms":
            return self.model_scope(unquote(rest), query)
        if site == "cdn":
            return self.content(*unquote(rest).split("/-/"))
        return self.answer(404, {})

    do_HEAD = do_GET

    def note_token(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            self.hub.seen_tokens.add(token)
        self.allowed = token in self.hub.tokens

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self):
        """收一个大文件；地址的最后一段是它该有的指纹。"""
        data, oid = self.body(), self.path.rsplit("/", 1)[-1]
        if "blob" in self.hub.refuse:
            return self.answer(self.hub.refuse["blob"], {})
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.blobs[oid] = data
        return self.answer(200, {})

    def do_POST(self):
        site, _, path = urlparse(self.path).path.strip("/").partition("/")
        path, data = unquote(path), self.body()
        self.note_token()
        if not self.allowed:
            return self.answer(401, {"error": "Invalid token", "Message": "token"})
        kind = {"batch": "blob", "create": "create", "models": "create"}.get(path.split("/")[-1])
        kind = "commit" if "/commit/" in path else kind
        if kind in self.hub.refuse:
            return self.answer(self.hub.refuse[kind], {"error": "refused", "Message": "refused"})
        return (self.post_hugging_face if site == "hf" else self.post_model_scope)(path, data)

    def batch(self, data: bytes) -> list[dict]:
        """LFS：每个大文件传到哪里；已经有的不用传。"""
        rows = json.loads(data)["objects"]
        for row in rows:
            if row["oid"] not in self.hub.blobs:
                row["actions"] = {"upload": {"href": f"{self.hub.address}/blob/{row['oid']}"}}
        return rows

    def post_hugging_face(self, path: str, data: bytes):
        if path == "api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "api/repos/create":
            said = json.loads(data)
            repo = f"{said['organization']}/{said['name']}" if "organization" in said else ""
            known = ("hf", repo) in self.hub.made
            self.hub.made["hf", repo] = said
            return self.answer(409 if known else 200, {"url": f"{self.hub.address}/hf/{repo}"})
        if path.endswith("/objects/batch"):
            return self.answer(200, {"transfer": "basic", "objects": self.batch(data)})
        repo = path.removeprefix("api/models/").split("/preupload/")[0].split("/commit/")[0]
        if "/preupload/" in path:
            rows = [
                {**row, "uploadMode": "lfs" if row["path"].endswith("safetensors") else "regular"}
                for row in json.loads(data)["files"]
            ]
            return self.answer(200, {"files": [{**row, "shouldIgnore": False} for row in rows]})
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                self.hub.uploaded["hf", repo][value["path"]] = content
            elif line["key"] == "lfsFile":
                self.hub.uploaded["hf", repo][value["path"]] = self.hub.blobs[value["oid"]]
        url = f"{self.hub.address}/hf/{repo}/commit/{COMMIT}"
        return self.answer(200, {"success": True, "commitUrl": url, "commitOid": COMMIT})

    def post_model_scope(self, path: str, data: bytes):
        said = json.loads(data)
        if path == "api/v1/models":
            repo = f"{said['Path']}/{said['Name']}"
            if ("ms", repo) in self.hub.made:
                return self.answer(400, {"Code": 400, "Message": "already exists"})
            self.hub.made["ms", repo] = said
            return self.answer(200, {"Code": 200, "Data": {"Path": said["Path"]}})
        if path.endswith("/objects/batch"):
            return self.answer(200, {"Code": 200, "Data": {"objects": self.batch(data)}})
        repo = path.removeprefix("api/v1/repos/models/").split("/commit/")[0]
        for row in said["actions"]:
            content = self.hub.blobs[row["sha256"]] if row["type"] == "lfs" else None
            inline = base64.b64decode(row["content"]) if content is None else content
            self.hub.uploaded["ms", repo][row["path"]] = inline
        return self.answer(200, {"Code": 200, "Success": True, "Data": {}})

    def hugging_face(self, path: str):
        if path.startswith("api/models/"):
            repo = path.removeprefix("api/models/")
            files = self.hub.repos.get(repo)
            if files is None or "hf" in self.hub.absent:
                return self.answer(401, {"error": "Invalid username or password."})
            siblings = [self.sibling(name, data) for name, data in files.items()]
            gated = "manual" if repo in self.hub.gated else False
            return self.answer(200, {"sha": COMMIT, "gated": gated, "siblings": siblings})
        repo, _, name = path.partition(f"/resolve/{COMMIT}/")
        if name not in self.hub.repos.get(repo, {}):
            return self.answer(404, {})
        if repo in self.hub.gated and not self.allowed:
            return self.answer(401 if not self.headers.get("Authorization") else 403, {})
        return self.redirect(f"{self.hub.address}/cdn/{repo}/-/{name}")

    def sibling(self, name: str, data: bytes) -> dict:
        entry = {"rfilename": name, "size": len(data)}
        if not self.hub.fingerprints:
            return entry
        if name.endswith((".safetensors", ".bin")):
            return {**entry, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        return {**entry, "blobId": git}

    def model_scope(self, path: str, query: dict):
        repo, _, rest = path.removeprefix("api/v1/models/").rpartition("/repo")
        files = self.hub.repos.get(repo)
        if files is None or "ms" in self.hub.absent:
            return self.answer(404, {"Code": 10010205001, "Success": False})
        if rest == "/files":
            rows = [{"Path": n, "Size": len(d), "Type": "blob"} for n, d in files.items()]
            for row in rows if self.hub.fingerprints else ():
                row["Sha256"] = hashlib.sha256(files[row["Path"]]).hexdigest()
            rows += [{"Path": "transformer", "Size": 0, "Type": "tree"}]
            return self.answer(200, {"Code": 200, "Success": True, "Data": {"Files": rows}})
        if repo in self.hub.gated and not self.allowed:
            return self.answer(403, {"Code": 403, "Success": False})
        return self.content(repo, query["FilePath"])

    def content(self, repo: str, name: str):
        """一个文件的内容，或接下来该出的错。"""
        data = self.hub.repos[repo][name]
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        if self.command == "GET":
            self.hub.asked.append(f"{name}@{start}" if start else name)
        fault = self.hub.faults[name].pop(0) if self.hub.faults[name] else None
        if isinstance(fault, int):
            return self.answer(fault, {})
        if fault == "no-range":
            start = 0
        body = data[start:]
        if fault == "corrupt":
            body = bytes(b ^ 1 for b in body[:8]) + body[8:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        half = len(body) // 2
        self.wfile.write(body[:half])
        if fault == "stall":
            self.wfile.flush()
            time.sleep(self.hub.stall)
        if fault in ("cut", "stall"):
            self.close_connection = True
            return self.connection.close()
        return self.wfile.write(body[half:])

    def redirect(self, where: str):
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, status: int, body: dict):
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, text: bytes):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


def files_of(folder: Path) -> dict[str, bytes]:
    """一个文件夹的全部文件 -> {路径: 内容}。"""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    with StandIn({sys.argv[2]: files_of(Path(sys.argv[1]))}) as hub:
        print(f"HF_ENDPOINT={hub.address}/hf MODELSCOPE_ENDPOINT={hub.address}/ms", flush=True)
        threading.Event().wait()
