#!/usr/bin/env bash
# One vLLM server a member, then the gateway that votes; all of them end with this script.
# HOST, PORT (of the gateway), FIRST_PORT (of the members), PYTHON and VLLM_PYTHON (where vLLM has an
# environment of its own) can be set; arguments go to the gateway: serve.api_key_env=NAME serve.lazy=true
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
vllm=${VLLM_PYTHON:-$python}
first=${FIRST_PORT:-8101}
members=({{ members | map(attribute="label") | map("quoted") | join(" ") }})
shares=({{ shares | join(" ") }})
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait' EXIT
trap 'exit 143' INT TERM

engines=""
for i in "${!members[@]}"; do
  port=$((first + i))
  env {% for key, value in environment.items() %}{{ key }}={{ value }} {% endfor %}"$vllm" -m vllm.entrypoints.openai.api_server \
    --model "$here/members/${members[$i]}" --served-model-name "${members[$i]}" \
    --host 127.0.0.1 --port "$port" {{ settings | join(" ") }}{% if described.target == "cuda" %} --gpu-memory-utilization "${shares[$i]}"{% endif %} &
  pids+=($!)
  engines="${engines:+$engines,}http://127.0.0.1:$port/v1"
  # One by one: a server looks at what memory is free as it starts.
  until "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health')" 2>/dev/null; do
    kill -0 "${pids[$i]}" || { echo "the server of ${members[$i]} has ended" >&2; exit 1; }
    sleep 1
  done
done

"$python" -m ptsearch +serve=gateway serve.dir="$here" "serve.engines=[$engines]" \
  serve.host="${HOST:-127.0.0.1}" serve.port="${PORT:-8000}" "$@" &
pids+=($!)
wait "$!"
