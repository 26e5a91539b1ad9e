"""`serve.sh` of an export: it starts all servers, and ends them."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from exports import write

STUB = """#!{python}
import http.server, sys
arguments = sys.argv[1:]
if arguments[:2] == ["-m", "vllm.entrypoints.openai.api_server"]:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
        def log_message(self, *_): pass
    port = int(arguments[arguments.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
elif arguments[0] == "-c":
    exec(arguments[1])
else:
    print("\\n".join(arguments), flush=True)
    {gateway}
"""


def test_the_script_starts_the_gateway_once_its_members_are_up(study, cache, tmp_path) -> None:
    """vLLM and ptsearch are played by a stub: it is the script that is run."""
    folder = write(study, cache, tmp_path / "out", "cpu").folder
    first, environment = stubbed(tmp_path, "")
    done = subprocess.run(
        [folder / "serve.sh", "serve.max_changed=1"], env=environment, capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    urls = ",".join(f"http://127.0.0.1:{first + i}/v1" for i in range(3))
    assert done.stdout.splitlines() == [
        "-m", "ptsearch", "+serve=gateway", f"serve.dir={folder}", f"serve.engines=[{urls}]",
        "serve.host=127.0.0.1", "serve.port=1", "serve.max_changed=1",
    ]  # fmt: skip
    assert not listening(first)


def test_all_servers_end_with_the_script(study, cache, tmp_path) -> None:
    folder = write(study, cache, tmp_path / "out", "cpu").folder
    first, environment = stubbed(tmp_path, "import time; time.sleep(60)")
    script = subprocess.Popen([folder / "serve.sh"], env=environment, stdout=subprocess.PIPE)
    assert script.stdout
    script.stdout.readline()  # the gateway has started
    assert len(listening(first)) == 3
    script.terminate()
    assert script.wait(10) == 143
    script.stdout.close()
    assert not listening(first)


def stubbed(tmp_path: Path, gateway: str) -> tuple[int, dict[str, str]]:
    """First port and environment of the script; `gateway` is what the gateway does once started."""
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, gateway=gateway))
    stub.chmod(0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        first = taken.getsockname()[1] % 10000 + 20000  # the system gives those from 32768 on
    return first, os.environ | {"PYTHON": str(stub), "FIRST_PORT": str(first), "PORT": "1"}


def listening(first: int) -> list[int]:
    """Which of the members' ports answer."""
    found = []
    for port in range(first, first + 3):
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            found.append(port)
    return found
