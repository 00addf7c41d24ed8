"""A fake W&B server on the loopback interface: the part of the protocol that runs need; it stores all requests."""

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Run:
    """The data sent by a run."""

    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False


class Server(ThreadingHTTPServer):
    """Runs by id, and every request as text."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, Run] = {}
        self.views: list[dict] = []
        self.heard: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def answer(self, query: str, variables: dict) -> dict:
        """Answer a GraphQL query."""
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self.upsert(variables), "inserted": True}}
        if "upsertView" in query:
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "v1", "name": variables["name"]}, "inserted": True}}
        if "RunResumeStatus" in query:
            return {"model": {"id": "p", "name": "p", "entity": ENTITY, "bucket": self.resumed(variables["name"])}}
        if "createRunFiles" in query:
            names = variables["files"]
            files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in names]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {"viewer": VIEWER, "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def upsert(self, variables: dict) -> dict:
        run = self.runs.setdefault(variables["name"], Run())
        run.name = variables.get("displayName") or run.name
        run.group = variables.get("groupName") or run.group
        run.tags = variables.get("tags") or run.tags
        if config := variables.get("config"):
            run.config = {key: entry["value"] for key, entry in json.loads(config).items() if key != "_wandb"}
        project = {"id": "p", "name": variables.get("project") or "p", "entity": ENTITY}
        identity = {"id": variables["name"], "name": variables["name"], "displayName": run.name}
        return {**identity, "project": project, "sweepName": None, "historyLineCount": len(run.history)}

    def resumed(self, name: str) -> dict | None:
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            "id": name,
            "name": name,
            "displayName": run.name,
            "tags": run.tags,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary),
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "eventsTail": "[]",
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),
        }

    def stream(self, name: str, sent: dict) -> None:
        """Store a part of a run's history and summary."""
        run = self.runs[name]
        for file, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if file.endswith("history.jsonl"):
                run.history[part["offset"] :] = lines
            elif file.endswith("summary.json") and lines:
                run.summary = lines[-1]
        run.preempting |= bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")


ENTITY = {"id": "e", "name": "e"}
VIEWER = {"id": "u", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": [{"node": ENTITY}]}}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        text = self._body()
        if self.path.endswith("/graphql"):
            asked = json.loads(text)
            self._reply({"data": self.server.answer(asked["query"], asked.get("variables") or {})})
        else:
            if self.path.endswith("/file_stream"):  # /files/<entity>/<project>/<run>/file_stream
                self.server.stream(self.path.split("/")[-2], json.loads(text))
            self._reply({})

    def do_PUT(self):
        self._body()
        self._reply({})

    def do_GET(self):
        self._reply({})

    def _body(self) -> str:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        text = content.decode(errors="replace")
        self.server.heard.append(f"{self.path} {self.headers} {text}")
        return text

    def _reply(self, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
