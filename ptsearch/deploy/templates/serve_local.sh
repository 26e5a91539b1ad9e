#!/usr/bin/env bash
# All members in one process; HOST, PORT and PYTHON can be set, arguments go to the server.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" -m ptsearch +serve=local serve.dir="$here" \
  serve.host="${HOST:-127.0.0.1}" serve.port="${PORT:-8000}" "$@"
